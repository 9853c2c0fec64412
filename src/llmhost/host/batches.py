"""Files and batches of a node, built and joined."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmhost.api.batches.admin import BatchAdmin
from llmhost.api.batches.routes import BatchDesk
from llmhost.api.creating import Creation
from llmhost.api.errors import error_body
from llmhost.api.files.routes import FileDesk
from llmhost.api.message_batches.routes import MessageBatchDesk
from llmhost.config.schema import Settings
from llmhost.core.caller import Caller
from llmhost.core.errors import LlmhostError, Unauthenticated
from llmhost.core.ports import Clock
from llmhost.host.books import Books
from llmhost.observe.metrics import Metrics
from llmhost.pipeline.batches.attempt import LineRoute, LineRunner
from llmhost.pipeline.batches.booking import Booking
from llmhost.pipeline.batches.pace import Pace
from llmhost.pipeline.batches.runner import BatchRunner
from llmhost.pipeline.bill import Bill
from llmhost.pipeline.processor import Processor
from llmhost.storage.batches import Batches
from llmhost.storage.files import Files
from llmhost.storage.keyed_calls import KeyedCalls
from llmhost.storage.node import DataDir
from llmhost.storage.state import State
from llmhost.tenants.keys import KeyStore
from llmhost.tenants.roles import Right, check_right

log = logging.getLogger("llmhost.host")

HOUR_S = 3_600


@dataclass(frozen=True, slots=True)
class Deferred:
    """What callers leave here to be done, and what they get for it."""

    files: FileDesk
    batches: BatchDesk
    message_batches: MessageBatchDesk
    admin: BatchAdmin
    runner: BatchRunner

    async def keep_forgetting(self) -> None:
        """Once an hour: delete files whose time is over. Runs for ever."""
        while True:
            try:
                await self.files.files.forget_expired()
            except LlmhostError as error:
                log.warning("files.not_forgotten error=%s", error)
            await asyncio.sleep(HOUR_S)


def files_folder(data_dir: DataDir) -> Path:
    return data_dir.path / "files"


def open_files(settings: Settings, data_dir: DataDir, state: State, clock: Clock) -> Files:
    """What callers uploaded. Blocks while files are swept."""
    files = Files(
        state,
        files_folder(data_dir),
        node_id=data_dir.node_id,
        clock=clock,
        keep_free_bytes=settings.files.keep_free_bytes,
    )
    files.sweep()
    return files


def open_deferred(
    settings: Settings,
    state: State,
    files: Files,
    clock: Clock,
    *,
    processor: Processor,
    routes: Mapping[str, LineRoute],
    bill: Bill,
    books: Books,
    metrics: Metrics,
) -> Deferred:
    """`routes` are what lines may ask. Nothing runs before `runner.start`."""
    store = Batches(state, node_id=files.node_id, clock=clock)
    lines = LineRunner(
        processor,
        store,
        routes,
        error_body=error_body,
        priority=settings.batches.priority,
        caller_of=lambda caller: caller_now(books.keys, caller),
    )
    pace = Pace(
        settings.batches.busy_share,
        clock,
        heard_ns=lambda: processor.heard_ns,
        in_flight=lambda: processor.in_flight,
    )
    runner = BatchRunner(
        settings.batches,
        store,
        files,
        lines,
        Booking(store, bill.settle.book_late, books.ledger.known),
        pace,
        clock,
        metrics.batches,
        longest_line_bytes=settings.server.max_body_bytes,
    )
    metrics.batches.read_from(runner.states, lambda: pace.running)
    kept_s = settings.idempotency.kept_s
    calls = KeyedCalls(state, node_id=files.node_id, clock=clock, kept_s=kept_s)
    creation = Creation(calls, metrics.answer_repeated)
    desk = BatchDesk(store, runner, clock, settings.files.batch_days, creation)
    admin = BatchAdmin(store, files, clock, runner)
    shelf = FileDesk(files, settings.files, creation)
    messages = MessageBatchDesk(
        store,
        runner,
        shelf,
        clock,
        most_requests=settings.batches.max_lines,
        longest_bytes=settings.server.max_body_bytes,
    )
    return Deferred(shelf, desk, messages, admin, runner)


def offline_admin(data_dir: DataDir, state: State, clock: Clock) -> BatchAdmin:
    """The operator's acts on a stopped node."""
    node_id = data_dir.node_id
    files = Files(state, files_folder(data_dir), node_id=node_id, clock=clock, keep_free_bytes=0)
    return BatchAdmin(Batches(state, node_id=node_id, clock=clock), files, clock)


def caller_now(keys: KeyStore, caller: Caller) -> Caller:
    """Who left something here, as that is now. One whom a plugin knows is who it was.

    Raises Unauthenticated when its key has ended, and Forbidden when that may not ask models any more.
    """
    if caller.key_id is None:
        if keys.has_keys and caller.org == "local":
            raise Unauthenticated("This server has API keys now, and this was asked without one.")
        return caller
    now = keys.caller(caller.key_id) or caller
    check_right(now, Right.INFER)
    return now
