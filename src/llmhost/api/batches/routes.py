"""/v1/batches: create, list, read and cancel. A team's batches are its own; those of others are not there."""

from dataclasses import dataclass

from litestar import Response, get, post
from litestar.types import ControllerRouterHandler

from llmhost.api.batches.wire import (
    MARK,
    BatchObject,
    BatchPage,
    NewBatch,
    batch_object,
    batch_of,
    batch_page,
)
from llmhost.api.creating import AnyRequest, Creation, Sent, sent, told
from llmhost.api.files.routes import DAY_S, CallerOf, owner_of, stamped
from llmhost.api.idempotency import digest
from llmhost.api.loose import read_body
from llmhost.api.params import FromPath, FromQuery
from llmhost.core.errors import Conflict, InvalidValue, NotFound
from llmhost.core.ports import Clock
from llmhost.pipeline.authenticate import check_run, run_of
from llmhost.pipeline.batches.record import Batch, from_record
from llmhost.pipeline.batches.runner import BatchRunner
from llmhost.storage.batches import Batches
from llmhost.storage.files import Owner
from llmhost.storage.keyed_calls import Made, Note

MOST_ROWS, USUAL_ROWS = 100, 20


@dataclass(frozen=True, slots=True)
class BatchDesk:
    """What the routes do."""

    store: Batches
    runner: BatchRunner
    clock: Clock
    file_days: int
    creation: Creation

    async def create(
        self, sent: Sent, headers: dict[str, str], raw: bytes
    ) -> tuple[BatchObject, Made | None]:
        """Raises BadRequest, RateLimited, StorageFailed; NotFound where the batch of such a call is gone."""
        caller = sent.caller
        owner = owner_of(caller)
        check_run(headers)
        batch = batch_of(
            read_body(raw, NewBatch),
            caller,
            run_of(headers),
            endpoints=self.runner.endpoints,
            now_s=self.clock.utc_ns() // 10**9,
            usual_lasts_s=self.file_days * DAY_S,
        )

        async def make(note: Note | None) -> BatchObject:
            await self.runner.add(batch, owner, note)
            return batch_object(batch)

        async def find(batch_id: str) -> BatchObject:
            return batch_object(await self.find(batch_id, owner))

        return await self.creation.once(sent.call(digest(raw)), make, find)

    async def listed(self, owner: Owner | None, after: str | None, limit: int) -> BatchPage:
        """Raises InvalidValue."""
        if not 1 <= limit <= MOST_ROWS:
            raise InvalidValue(f"'limit' may be 1 to {MOST_ROWS}.", param="limit")
        records = await self.store.page(owner, after=after, limit=limit + 1, mark=MARK)
        return batch_page([self.runner.now(from_record(record)) for record in records], limit)

    async def find(self, batch_id: str, owner: Owner | None) -> Batch:
        """Raises NotFound."""
        record = await self.store.find(batch_id, owner) if batch_id.startswith(MARK) else None
        if record is None:
            raise NotFound(f"There is no batch {batch_id[:80]!r}. GET /v1/batches lists yours.")
        return self.runner.now(from_record(record))

    async def cancel(self, batch_id: str, owner: Owner | None) -> BatchObject:
        """Raises NotFound, and Conflict for one that has ended."""
        batch = await self.find(batch_id, owner)
        now = await self.runner.cancel(batch_id)
        if now is None or now.status.is_end:
            status = (now or batch).status.value
            raise Conflict(f"The batch {batch_id} is {status}, so it can't be cancelled.")
        return batch_object(now)


def batch_routes(desk: BatchDesk, caller_of: CallerOf) -> list[ControllerRouterHandler]:
    @post("/v1/batches", tags=["batches"], status_code=200)
    async def create_batch(request: AnyRequest) -> Response[BatchObject]:
        """Run the requests of a file when there is room for them."""
        call = sent(request, await caller_of(request))
        raw = await request.body()
        batch, made = await desk.create(call, dict(request.headers), raw)
        return told(batch, call, made)

    @get("/v1/batches", tags=["batches"])
    async def list_batches(
        request: AnyRequest,
        after: FromQuery[str | None] = None,
        limit: FromQuery[int] = USUAL_ROWS,
    ) -> Response[BatchPage]:
        """Batches of the caller's team, the newest first."""
        owner = owner_of(await caller_of(request))
        return stamped(await desk.listed(owner, after, limit))

    @get("/v1/batches/{batch_id:str}", tags=["batches"])
    async def read_batch(request: AnyRequest, batch_id: FromPath[str]) -> Response[BatchObject]:
        """One batch, and how far it is."""
        owner = owner_of(await caller_of(request))
        return stamped(batch_object(await desk.find(batch_id, owner)))

    @post("/v1/batches/{batch_id:str}/cancel", tags=["batches"], status_code=200)
    async def cancel_batch(request: AnyRequest, batch_id: FromPath[str]) -> Response[BatchObject]:
        """Begin no more of its lines. Those that run go on to their ends."""
        owner = owner_of(await caller_of(request))
        return stamped(await desk.cancel(batch_id, owner))

    return [create_batch, list_batches, read_batch, cancel_batch]
