"""/admin/v1/batches and /admin/v1/files: those of everybody, for the operator."""

from dataclasses import dataclass

import msgspec
from litestar import delete, get, post
from litestar.types import ControllerRouterHandler, Guard

from llmhost.api.admin_tenants import MOST_ROWS, PAGE_ROWS
from llmhost.api.batches.wire import BatchObject, batch_object
from llmhost.api.files.wire import FileDeleted, FileObject, file_object
from llmhost.api.params import FromPath, FromQuery
from llmhost.api.router import Router
from llmhost.core.errors import Conflict, InvalidValue, NotFound
from llmhost.core.ports import Clock
from llmhost.pipeline.batches.record import Batch, BatchStatus, from_record, to_record
from llmhost.pipeline.batches.runner import BatchRunner
from llmhost.storage.batches import Batches
from llmhost.storage.files import Files, StoredFile


class BatchRow(BatchObject, frozen=True, kw_only=True):
    """A batch, and whose it is."""

    org: str
    team: str | None
    key: str | None


class BatchRows(msgspec.Struct, frozen=True, kw_only=True):
    """Batches of everybody, the newest first. The next page comes `after` `last_id`."""

    data: list[BatchRow]
    has_more: bool
    last_id: str | None


class FileRow(FileObject, frozen=True, kw_only=True):
    """A file, and whose it is."""

    org: str
    team: str | None


class FileRows(msgspec.Struct, frozen=True, kw_only=True):
    """Files of everybody, the newest first. The next page comes `after` `last_id`."""

    data: list[FileRow]
    has_more: bool
    last_id: str | None


@dataclass(frozen=True, slots=True)
class BatchAdmin:
    """What an operator may do, on a running node or, without a `runner`, on a stopped one."""

    store: Batches
    files: Files
    clock: Clock
    runner: BatchRunner | None = None

    async def batches(
        self, *, org: str | None = None, limit: int = PAGE_ROWS, after: str | None = None
    ) -> BatchRows:
        """Raises InvalidValue."""
        _check_limit(limit)
        records = await self.store.page(None, org=org, after=after, limit=limit + 1)
        data = [_batch_row(self._now(from_record(record))) for record in records[:limit]]
        last = data[-1].id if data else None
        return BatchRows(data=data, has_more=len(records) > limit, last_id=last)

    async def batch(self, batch_id: str) -> BatchRow:
        """Raises NotFound."""
        return _batch_row(await self._find(batch_id))

    async def cancel(self, batch_id: str) -> BatchRow:
        """Raises NotFound, and Conflict for one that has ended. A stopped node goes on with it when it starts."""
        batch = await self._find(batch_id)
        if batch.status.is_end:
            raise Conflict(f"The batch {batch_id} is {batch.status}, so it can't be cancelled.")
        if self.runner is not None:
            return _batch_row(await self.runner.cancel(batch_id) or batch)
        moved = batch.moved(BatchStatus.CANCELLING, self.clock.utc_ns() // 10**9)
        await self.store.update(batch_id, to_record(moved))
        return _batch_row(moved)

    async def list_files(
        self, *, org: str | None = None, limit: int = PAGE_ROWS, after: str | None = None
    ) -> FileRows:
        """Raises InvalidValue."""
        _check_limit(limit)
        found = await self.files.page(None, org=org, after=after, limit=limit + 1)
        data = [_file_row(file) for file in found[:limit]]
        last = data[-1].id if data else None
        return FileRows(data=data, has_more=len(found) > limit, last_id=last)

    async def delete_file(self, file_id: str) -> FileDeleted:
        """Raises NotFound, FileInUse."""
        if not await self.files.delete(file_id):
            raise NotFound(f"There is no file {file_id[:80]!r}. `llmhost files list` lists them.")
        return FileDeleted(id=file_id)

    async def _find(self, batch_id: str) -> Batch:
        record = await self.store.find(batch_id)
        if record is None:
            raise NotFound(
                f"There is no batch {batch_id[:80]!r}. `llmhost batches list` lists them."
            )
        return self._now(from_record(record))

    def _now(self, batch: Batch) -> Batch:
        return batch if self.runner is None else self.runner.now(batch)


def batch_admin_router(admin: BatchAdmin, guard: Guard) -> Router:
    """For the operator alone."""

    @get("/batches")
    async def list_all_batches(
        org: FromQuery[str | None] = None,
        limit: FromQuery[int] = PAGE_ROWS,
        after: FromQuery[str | None] = None,
    ) -> BatchRows:
        """Batches of everybody, or of an `org`."""
        return await admin.batches(org=org, limit=limit, after=after)

    @get("/batches/{batch_id:str}")
    async def show_batch(batch_id: FromPath[str]) -> BatchRow:
        """One batch, whoever's it is."""
        return await admin.batch(batch_id)

    @post("/batches/{batch_id:str}/cancel", status_code=200)
    async def cancel_any_batch(batch_id: FromPath[str]) -> BatchRow:
        """Begin no more of its lines."""
        return await admin.cancel(batch_id)

    @get("/files")
    async def list_all_files(
        org: FromQuery[str | None] = None,
        limit: FromQuery[int] = PAGE_ROWS,
        after: FromQuery[str | None] = None,
    ) -> FileRows:
        """Files of everybody, or of an `org`, without what is in them."""
        return await admin.list_files(org=org, limit=limit, after=after)

    @delete("/files/{file_id:str}", status_code=200)
    async def delete_any_file(file_id: FromPath[str]) -> FileDeleted:
        """Delete a file, whoever's it is."""
        return await admin.delete_file(file_id)

    handlers: list[ControllerRouterHandler] = [
        list_all_batches,
        show_batch,
        cancel_any_batch,
        list_all_files,
        delete_any_file,
    ]
    return Router("/admin/v1", guards=[guard], tags=["admin"], route_handlers=handlers)


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MOST_ROWS:
        raise InvalidValue(f"'limit' may be 1 to {MOST_ROWS}.", param="limit")


def _batch_row(batch: Batch) -> BatchRow:
    told = batch_object(batch)
    facts = {name: getattr(told, name) for name in BatchObject.__struct_fields__}
    caller = batch.caller
    return BatchRow(**facts, org=caller.org, team=caller.team, key=caller.key_id)


def _file_row(file: StoredFile) -> FileRow:
    told = file_object(file)
    facts = {name: getattr(told, name) for name in FileObject.__struct_fields__}
    return FileRow(**facts, org=file.org, team=file.team)
