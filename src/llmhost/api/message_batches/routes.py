"""/v1/messages/batches: create, list, read, cancel, delete, and the results. A team's batches are its own; those of
others are not there."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from litestar import Response, delete, get, post
from litestar.response import Stream
from litestar.types import ControllerRouterHandler

from llmhost.api.creating import AnyRequest, Sent, sent, told
from llmhost.api.dialect import ANTHROPIC_PATH
from llmhost.api.files.routes import CallerOf, FileDesk, owner_of, stamped
from llmhost.api.idempotency import digest
from llmhost.api.message_batches.wire import (
    MARK,
    PATH,
    DeletedMessageBatch,
    MessageBatchObject,
    MessageBatchPage,
    archived_at,
    message_batch,
    message_batch_page,
    read_lines,
    result_files,
    results,
)
from llmhost.api.params import FromPath, FromQuery
from llmhost.core.caller import Caller
from llmhost.core.errors import BadRequest, Conflict, FileInUse, InvalidValue, NotFound
from llmhost.core.ids import new_request_id
from llmhost.core.ports import Clock
from llmhost.pipeline.authenticate import check_run, run_of
from llmhost.pipeline.batches.record import Batch, from_record
from llmhost.pipeline.batches.runner import BatchRunner
from llmhost.storage.batches import Batches
from llmhost.storage.connect import StorageFailed
from llmhost.storage.draft import Draft
from llmhost.storage.files import Owner
from llmhost.storage.keyed_calls import Made, Note

MOST_ROWS, USUAL_ROWS = 1_000, 20
WINDOW, WINDOW_S = "24h", 86_400
DAY_S = 86_400
LINES_AT_ONCE = 64
RESULTS = "application/x-jsonl"


@dataclass(frozen=True, slots=True)
class MessageBatchDesk:
    """What the routes do."""

    store: Batches
    runner: BatchRunner
    files: FileDesk
    clock: Clock
    most_requests: int
    longest_bytes: int
    """Of one request."""

    async def create(
        self, sent: Sent, headers: dict[str, str], raw: bytes
    ) -> tuple[Batch, Made | None]:
        """Raises BadRequest, RequestTooLarge, FilesFull, RateLimited, StorageFailed; NotFound where the batch of such a
        call is gone."""
        check_run(headers)
        owner = owner_of(sent.caller)
        call = sent.call(await asyncio.to_thread(digest, raw)) if sent.has_key else None
        return await self.files.creation.once(
            call,
            lambda note: self._make(sent.caller, headers, raw, note),
            lambda batch_id: self.find(batch_id, owner),
        )

    async def _make(
        self, caller: Caller, headers: dict[str, str], raw: bytes, note: Note | None
    ) -> Batch:
        batch_id = f"{MARK}{secrets.token_hex(12)}"
        draft, count = await asyncio.to_thread(self._written, raw)
        owner = owner_of(caller)
        lasts_s = self.files.settings.batch_days * DAY_S
        name = f"{batch_id}_requests.jsonl"
        try:
            file = self.files.files.facts(
                draft, owner, purpose="batch", filename=name, lasts_s=lasts_s
            )
            await self.files.files.add(file, self.files.room)
        except BaseException:
            draft.discard()
            raise
        now_s = self.now_s
        batch = Batch(
            id=batch_id,
            caller=caller,
            run_id=run_of(headers) or batch_id,
            endpoint=ANTHROPIC_PATH,
            input_file_id=file.id,
            completion_window=WINDOW,
            created_at=now_s,
            expires_at=now_s + WINDOW_S,
            output_lasts_s=lasts_s,
            total=count,
        )
        try:
            await self.runner.add(batch, owner, note)
        except BaseException:
            await self.files.files.delete(file.id, owner)
            raise
        return batch

    def _written(self, raw: bytes) -> tuple[Draft, int]:
        """The input on disk, and how many lines it has. Blocks."""
        lines = read_lines(raw, most=self.most_requests, longest_bytes=self.longest_bytes)
        draft = self.files.files.draft()
        try:
            for line in lines:
                draft.write(line + b"\n")
            draft.finish()
        except BaseException:
            draft.discard()
            raise
        return draft, len(lines)

    async def listed(
        self, owner: Owner, *, after: str | None, before: str | None, limit: int
    ) -> tuple[list[Batch], bool]:
        """Some, the newest first, and whether there are more that way. Raises InvalidValue."""
        if not 1 <= limit <= MOST_ROWS:
            raise InvalidValue(f"'limit' may be 1 to {MOST_ROWS}.", param="limit")
        if after is not None and before is not None:
            raise InvalidValue("Send 'after_id' or 'before_id', not both.", param="before_id")
        records = await self.store.page(
            owner, after=after, before=before, limit=limit + 1, mark=MARK
        )
        has_more = len(records) > limit
        kept = records[-limit:] if before is not None else records[:limit]
        return [self.runner.now(from_record(record)) for record in kept], has_more

    async def find(self, batch_id: str, owner: Owner) -> Batch:
        """Raises NotFound."""
        record = await self.store.find(batch_id, owner) if batch_id.startswith(MARK) else None
        if record is None:
            raise NotFound(f"There is no batch {batch_id[:80]!r}. GET {PATH} lists yours.")
        return self.runner.now(from_record(record))

    async def cancel(self, batch_id: str, owner: Owner) -> Batch:
        """Raises NotFound, and Conflict for one that has ended."""
        await self.find(batch_id, owner)
        now = await self.runner.cancel(batch_id)
        if now is None or now.status.is_end:
            raise Conflict(f"The batch {batch_id} has ended, so it can't be canceled.")
        return now

    async def delete(self, batch_id: str, owner: Owner) -> None:
        """With the files that hold its requests and results. Raises NotFound, and Conflict for one that goes on."""
        batch = await self.find(batch_id, owner)
        if not batch.status.is_end:
            raise Conflict(f"The batch {batch_id} has not ended. Cancel it, and delete it then.")
        await self.store.delete(batch_id, owner)
        for file_id in (batch.input_file_id, *result_files(batch)):
            with suppress(FileInUse):  # somebody made another batch of it
                await self.files.files.delete(file_id, owner)

    async def results(self, batch_id: str, owner: Owner) -> list[Path]:
        """The files that they are in. Raises NotFound, and BadRequest while there are none yet."""
        batch = await self.find(batch_id, owner)
        if not batch.status.is_end:
            raise BadRequest(f"The batch {batch_id} has not ended, so it has no results yet.")
        archived_s = archived_at(batch)
        found = [await self.files.files.find(file_id, owner) for file_id in result_files(batch)]
        there = [self.files.files.path(file.id) for file in found if file is not None]
        is_over = archived_s is not None and archived_s <= self.now_s
        if not there or len(there) < len(found) or is_over:
            raise NotFound(f"The results of the batch {batch_id} are not kept any more.")
        return there

    async def shown(self, batch: Batch, base: str, owner: Owner) -> MessageBatchObject:
        """What is told of one; where its results are only while they are."""
        there = await self.files.files.there(result_files(batch), owner)
        return message_batch(batch, self.now_s, base, there)

    async def shown_page(
        self, found: Sequence[Batch], base: str, owner: Owner, *, has_more: bool
    ) -> MessageBatchPage:
        files = [file for batch in found for file in result_files(batch)]
        there = await self.files.files.there(files, owner)
        return message_batch_page(found, self.now_s, base, there, has_more=has_more)

    @property
    def now_s(self) -> int:
        return self.clock.utc_ns() // 10**9


def message_batch_routes(
    desk: MessageBatchDesk, caller_of: CallerOf, root_path: str
) -> list[ControllerRouterHandler]:
    async def shown(request: AnyRequest, batch: Batch, owner: Owner) -> MessageBatchObject:
        return await desk.shown(batch, base_url(request, root_path), owner)

    @post(PATH, tags=["messages"], status_code=200)
    async def create_message_batch(request: AnyRequest) -> Response[MessageBatchObject]:
        """Answer many conversations when there is room for them."""
        call = sent(request, await caller_of(request))
        raw = await request.body()
        batch, made = await desk.create(call, dict(request.headers), raw)
        return told(await shown(request, batch, owner_of(call.caller)), call, made)

    @get(PATH, tags=["messages"])
    async def list_message_batches(
        request: AnyRequest,
        after_id: FromQuery[str | None] = None,
        before_id: FromQuery[str | None] = None,
        limit: FromQuery[int] = USUAL_ROWS,
    ) -> Response[MessageBatchPage]:
        """Batches of messages of the caller's team, the newest first."""
        owner = owner_of(await caller_of(request))
        found, has_more = await desk.listed(owner, after=after_id, before=before_id, limit=limit)
        base = base_url(request, root_path)
        return stamped(await desk.shown_page(found, base, owner, has_more=has_more))

    @get(f"{PATH}/{{batch_id:str}}", tags=["messages"])
    async def read_message_batch(
        request: AnyRequest, batch_id: FromPath[str]
    ) -> Response[MessageBatchObject]:
        """One of them, and how far it is."""
        owner = owner_of(await caller_of(request))
        return stamped(await shown(request, await desk.find(batch_id, owner), owner))

    @post(f"{PATH}/{{batch_id:str}}/cancel", tags=["messages"], status_code=200)
    async def cancel_message_batch(
        request: AnyRequest, batch_id: FromPath[str]
    ) -> Response[MessageBatchObject]:
        """Begin no more of its requests. Those that run go on to their ends."""
        owner = owner_of(await caller_of(request))
        return stamped(await shown(request, await desk.cancel(batch_id, owner), owner))

    @delete(f"{PATH}/{{batch_id:str}}", tags=["messages"], status_code=200)
    async def delete_message_batch(
        request: AnyRequest, batch_id: FromPath[str]
    ) -> Response[DeletedMessageBatch]:
        """Forget one that has ended, with its requests and results."""
        await desk.delete(batch_id, owner_of(await caller_of(request)))
        return stamped(DeletedMessageBatch(id=batch_id))

    @get(f"{PATH}/{{batch_id:str}}/results", tags=["messages"], media_type=RESULTS)
    async def read_message_results(request: AnyRequest, batch_id: FromPath[str]) -> Stream:
        """What became of its requests, one JSON object a line, once it has ended."""
        paths = await desk.results(batch_id, owner_of(await caller_of(request)))
        return Stream(
            _told_results(paths),
            media_type=RESULTS,
            headers={"x-request-id": new_request_id(), "x-content-type-options": "nosniff"},
        )

    return [
        create_message_batch,
        list_message_batches,
        read_message_batch,
        cancel_message_batch,
        delete_message_batch,
        read_message_results,
    ]


def base_url(request: AnyRequest, root_path: str) -> str:
    """What this caller puts before paths; nothing where it did not say whom it asked."""
    host = request.headers.get("host")
    return f"{request.scope['scheme']}://{host}{root_path}" if host else root_path


async def _told_results(paths: Sequence[Path]) -> AsyncIterator[bytes]:
    for path in paths:
        try:
            opened = await asyncio.to_thread(path.open, "rb")
        except OSError as error:
            raise StorageFailed(path, error) from error
        with opened:
            lines = results(opened)
            while piece := await asyncio.to_thread(_some, lines):
                yield piece


def _some(lines: Iterator[bytes]) -> bytes:
    return b"".join(islice(lines, LINES_AT_ONCE))
