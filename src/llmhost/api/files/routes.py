"""/v1/files: upload, list, read and delete. A team's files are its own; those of others are not there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from litestar import Response, delete, get, post
from litestar.response import Stream
from litestar.types import ControllerRouterHandler

from llmhost.api.creating import AnyRequest, Creation, Sent, sent, told
from llmhost.api.files.upload import FORM_BYTES, Upload
from llmhost.api.files.wire import (
    FileDeleted,
    FileObject,
    FilePage,
    file_object,
    file_page,
    lasts_s_of,
    purpose_of,
)
from llmhost.api.params import FromPath, FromQuery
from llmhost.config.schema.state import FileSettings
from llmhost.core.caller import Caller
from llmhost.core.errors import InvalidValue, NotFound, RequestTooLarge
from llmhost.core.ids import new_request_id
from llmhost.storage.connect import StorageFailed
from llmhost.storage.files import Files, Owner, Room, StoredFile
from llmhost.storage.keyed_calls import Made, Note

CallerOf = Callable[[AnyRequest], Awaitable[Caller]]
MOST_ROWS = 10_000
PIECE_BYTES = 1 << 18
DAY_S = 86_400


def owner_of(caller: Caller) -> Owner:
    return Owner(caller.org, caller.team)


def stamped(body: msgspec.Struct, status: int = 200) -> Response[Any]:
    """An answer with an id."""
    return Response(body, status_code=status, headers={"x-request-id": new_request_id()})


@dataclass(frozen=True, slots=True)
class FileDesk:
    """What the routes do."""

    files: Files
    settings: FileSettings
    creation: Creation

    async def upload(self, sent: Sent, request: AnyRequest) -> tuple[FileObject, Made | None]:
        """Raises BadRequest, RequestTooLarge, FilesFull, StorageFailed; NotFound where what a call made is gone."""
        self._check_length(request.headers.get("content-length"))
        sent.call(b"")  # a key that can't be one is refused before anything is read
        upload = Upload(self.files, self.settings.max_file_bytes, is_hashed=sent.has_key)
        owner = owner_of(sent.caller)
        is_kept = False

        async def make(note: Note | None) -> FileObject:
            nonlocal is_kept
            file = self.files.facts(
                draft,
                owner,
                purpose=(purpose := purpose_of(upload.fields)),
                filename=upload.filename,
                lasts_s=lasts_s_of(upload.fields) or self._usual_s(purpose),
            )
            await asyncio.to_thread(draft.finish)
            stored = await self.files.add(file, self.room, note)
            is_kept = True
            return file_object(stored)

        async def find(file_id: str) -> FileObject:
            return file_object(await self.find(file_id, owner))

        try:
            kind = request.headers.get("content-type", "")
            draft = await upload.read(kind, request.stream())
            call = sent.call(upload.digest()) if sent.has_key else None
            return await self.creation.once(call, make, find)
        finally:
            if upload.draft is not None and not is_kept:
                upload.draft.discard()

    async def listed(
        self, owner: Owner | None, after: str | None, limit: int, order: str, purpose: str | None
    ) -> FilePage:
        """Raises InvalidValue."""
        if not 1 <= limit <= MOST_ROWS:
            raise InvalidValue(f"'limit' may be 1 to {MOST_ROWS}.", param="limit")
        if order not in ("asc", "desc"):
            raise InvalidValue("'order' may be asc or desc.", param="order")
        found = await self.files.page(
            owner, purpose=purpose, after=after, limit=limit + 1, is_rising=order == "asc"
        )
        return file_page(found, limit)

    async def find(self, file_id: str, owner: Owner | None) -> StoredFile:
        """Raises NotFound."""
        found = await self.files.find(file_id, owner)
        if found is None:
            raise no_file(file_id)
        return found

    async def delete(self, file_id: str, owner: Owner | None) -> FileDeleted:
        """Raises NotFound, FileInUse."""
        if not await self.files.delete(file_id, owner):
            raise no_file(file_id)
        return FileDeleted(id=file_id)

    @property
    def room(self) -> Room:
        return Room(self.settings.max_files_per_team, self.settings.max_bytes_per_team)

    def _usual_s(self, purpose: str) -> int | None:
        return self.settings.batch_days * DAY_S if purpose == "batch" else None

    def _check_length(self, length: str | None) -> None:
        """What says that it is too large is not read."""
        most = self.settings.max_file_bytes
        if length is not None and length.isdecimal() and int(length[:20]) > most + FORM_BYTES:
            raise RequestTooLarge(
                f"The file has more than {most} bytes, which is all that a file may have here.",
                param="file",
            )


def no_file(file_id: str) -> NotFound:
    return NotFound(f"There is no file {file_id[:80]!r}. GET /v1/files lists yours.")


def file_routes(desk: FileDesk, caller_of: CallerOf) -> list[ControllerRouterHandler]:
    @post("/v1/files", tags=["files"], status_code=200, request_max_body_size=None)
    async def upload_file(request: AnyRequest) -> Response[FileObject]:
        """Upload a file: multipart/form-data with `file` and `purpose`, and `expires_after` if it shall not stay."""
        call = sent(request, await caller_of(request))
        file, made = await desk.upload(call, request)
        return told(file, call, made)

    @get("/v1/files", tags=["files"])
    async def list_files(
        request: AnyRequest,
        after: FromQuery[str | None] = None,
        limit: FromQuery[int] = MOST_ROWS,
        order: FromQuery[str] = "desc",
        purpose: FromQuery[str | None] = None,
    ) -> Response[FilePage]:
        """Files of the caller's team, the newest first."""
        owner = owner_of(await caller_of(request))
        return stamped(await desk.listed(owner, after, limit, order, purpose))

    @get("/v1/files/{file_id:str}", tags=["files"])
    async def read_file(request: AnyRequest, file_id: FromPath[str]) -> Response[FileObject]:
        """One file, without what is in it."""
        owner = owner_of(await caller_of(request))
        return stamped(file_object(await desk.find(file_id, owner)))

    @get("/v1/files/{file_id:str}/content", tags=["files"], media_type="application/octet-stream")
    async def read_content(request: AnyRequest, file_id: FromPath[str]) -> Stream:
        """What is in a file."""
        file = await desk.find(file_id, owner_of(await caller_of(request)))
        return content(file, desk.files.path(file.id))

    @delete("/v1/files/{file_id:str}", tags=["files"], status_code=200)
    async def delete_file(request: AnyRequest, file_id: FromPath[str]) -> Response[FileDeleted]:
        """Delete a file. The input of a batch that has not ended can't be."""
        owner = owner_of(await caller_of(request))
        return stamped(await desk.delete(file_id, owner))

    return [upload_file, list_files, read_file, read_content, delete_file]


def content(file: StoredFile, path: Path) -> Stream:
    """A file's bytes as an answer. Never shown in place: a page of ours must not run what somebody uploaded."""
    return Stream(
        _pieces(path),
        media_type="application/octet-stream",
        headers={
            "x-request-id": new_request_id(),
            "content-length": str(file.bytes),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
            "x-content-type-options": "nosniff",
        },
    )


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    try:
        opened = await asyncio.to_thread(path.open, "rb")
    except OSError as error:
        raise StorageFailed(path, error) from error
    with opened:
        while piece := await asyncio.to_thread(opened.read, PIECE_BYTES):
            yield piece
