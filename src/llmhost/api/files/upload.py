"""A multipart upload, piece by piece to disk: never more of it is in memory than one piece.

The parser is fed on the event loop, which is a search for a few bytes in each piece; files are written in threads.
"""

import asyncio
from collections.abc import AsyncIterator
from hashlib import blake2b

from litestar.exceptions import ClientException
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from llmhost.api.files.wire import LONGEST_NAME
from llmhost.core.errors import BadRequest, MissingParameter, RequestTimeout, RequestTooLarge
from llmhost.storage.draft import Draft
from llmhost.storage.files import Files

PIECE_BYTES = 1 << 20
SILENCE_S = 60.0
"""So long a client may send nothing before its upload is given up."""
MOST_FIELDS, FIELD_BYTES = 32, 4_096
FORM_BYTES = 1 << 20
"""What a form may have around its file."""


class Upload:
    """One upload that is read. `draft` is the file, which whoever reads keeps or discards.

    Two forms say the same when their fields, names and contents are: what stands between them is drawn at random.
    """

    def __init__(self, files: Files, most_bytes: int, *, is_hashed: bool = False) -> None:
        self.fields: dict[str, str] = {}
        self.filename = ""
        self.draft: Draft | None = None
        self._files = files
        self._most_bytes = most_bytes
        self._hash = blake2b(digest_size=32) if is_hashed else None
        self._piece = bytearray()
        self._size = 0
        self._field: bytearray | None = None
        self._segment: MultipartSegment | None = None

    async def read(self, content_type: str, body: AsyncIterator[bytes]) -> Draft:
        """All of it; what is returned is not finished. Raises BadRequest, RequestTooLarge, RequestTimeout,
        StorageFailed."""
        kind, options = parse_options_header(content_type)
        boundary = options.get("boundary")
        if kind != "multipart/form-data" or not boundary:
            raise BadRequest(
                "Send the file as multipart/form-data, in the field 'file', with the field 'purpose'."
            )
        try:
            with PushMultipartParser(
                boundary, max_segment_count=MOST_FIELDS, max_header_size=8_192
            ) as parser:
                async for chunk in _in_time(body):
                    self._size += len(chunk)
                    if self._size > self._most_bytes + FORM_BYTES:
                        raise self._too_large()
                    for event in parser.parse(chunk):
                        await self._take(event)
        except (MultipartError, UnicodeDecodeError) as error:
            raise BadRequest(f"The form could not be read: {error}.") from None
        await self._flush()
        if self.draft is None:
            raise MissingParameter("file")
        return self.draft

    def digest(self) -> bytes:
        """Of what was sent. Only of one that is hashed."""
        assert self._hash is not None
        facts = self._hash.copy()
        for fact in (
            self.filename,
            *(text for field in sorted(self.fields.items()) for text in field),
        ):
            facts.update(b"\0" + fact.encode("utf-8", "surrogatepass"))
        return facts.digest()

    async def _take(self, event: MultipartSegment | bytearray | bytes | None) -> None:
        if isinstance(event, MultipartSegment):
            await self._begin(event)
        elif event is None:
            self._end()
        elif self._field is not None:
            self._field += event
            if len(self._field) > FIELD_BYTES:
                raise BadRequest(f"A field of the form has more than {FIELD_BYTES} bytes.")
        else:
            self._piece += event
            if len(self._piece) >= PIECE_BYTES:
                await self._flush()

    async def _begin(self, segment: MultipartSegment) -> None:
        self._segment = segment
        if segment.name != "file":
            self._field = bytearray()
            return
        if self.draft is not None:
            raise BadRequest("The form has two files; send one at a time.", param="file")
        if segment.filename is None:
            raise BadRequest("The field 'file' of the form must be a file.", param="file")
        self.filename = segment.filename[-LONGEST_NAME:] or "upload"
        self.draft = await asyncio.to_thread(self._files.draft)

    def _end(self) -> None:
        if self._field is not None and self._segment is not None:
            self.fields[self._segment.name] = self._field.decode()
        self._field = None

    async def _flush(self) -> None:
        if self.draft is None or not self._piece:
            return
        if self.draft.bytes + len(self._piece) > self._most_bytes:
            raise self._too_large()
        piece, self._piece = bytes(self._piece), bytearray()
        await asyncio.to_thread(self._write, self.draft, piece)

    def _write(self, draft: Draft, piece: bytes) -> None:
        draft.write(piece)
        if self._hash is not None:
            self._hash.update(piece)

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(
            f"The file has more than {self._most_bytes} bytes, which is all that a file may have here.",
            param="file",
        )


async def _in_time(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Raises RequestTimeout for a client that falls silent, BadRequest for one that leaves."""
    pieces = aiter(body)
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RequestTimeout(f"Nothing came of the file for {SILENCE_S:.0f} seconds.") from None
        except ClientException as error:
            raise BadRequest(error.detail) from None
        yield piece
