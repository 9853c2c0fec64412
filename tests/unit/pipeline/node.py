"""A whole node whose moments can be held: loads, steps of the model, and entries of the ledger."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.unit.cost.settling import then_by, together_by

from llmhost.config.schema.engines import FakeOptions
from llmhost.config.schema.models import ModelSpec
from llmhost.core.ports import Runner, RunnerFacts, Tokenizer
from llmhost.core.request import GenerationRequest, Kind
from llmhost.core.sampling import Sampling
from llmhost.cost.ledger import Entry, Recorded
from llmhost.cost.pricing import Price
from llmhost.cost.rerate import Rerating
from llmhost.cost.statement_check import check
from llmhost.engines.fake import FakeRunner
from llmhost.engines.kinds import FakeKind
from llmhost.hooks.spec import hookimpl
from llmhost.pipeline.exchange import Exchange
from llmhost.testing import FAKE_MODEL, TestHost

WAIT_S = 60.0
"""Longer than anything here takes, on a busy machine too."""


@dataclass
class Held:
    """A fake engine whose loads and steps wait for permission. A plugin: `make_host(plugins=[Held()])`."""

    name: str = "held"
    needs_files: bool = False
    may_load: threading.Event = field(default_factory=threading.Event)
    steps: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    is_free: bool = False
    """Steps are not held."""
    loads: int = 0
    kv_blocks: int | None = None
    fails: Callable[[int, int], Exception | None] = lambda seq_id, position: None
    """(sequence, position of the last token fed) -> that row's failure."""

    def __post_init__(self) -> None:
        self.may_load.set()

    @hookimpl
    def register_engines(self, register: Callable[[Any], None]) -> None:
        register(self)

    def footprint(self, spec: ModelSpec, folder: object) -> RunnerFacts:
        return FakeRunner(FakeOptions(), block_tokens=spec.block_tokens).facts

    def load(self, spec: ModelSpec, folder: object, predicted: RunnerFacts) -> Runner:
        self.loads += 1
        assert self.may_load.wait(WAIT_S)
        return HeldRunner(self, spec.block_tokens)

    def tokenizer(self, spec: ModelSpec, folder: object) -> Tokenizer:
        return FakeKind().tokenizer(FAKE_MODEL, None)

    def device_bytes(self, device: str) -> None:
        return None

    def go(self, steps: int | None = None) -> None:
        """Let so many steps run, or all."""
        if steps is None:
            self.is_free, steps = True, 1000
        self.steps.release(steps)

    def stop(self) -> None:
        """Hold all that come from now on."""
        self.is_free = False
        while self.steps.acquire(blocking=False):
            pass


class HeldRunner(FakeRunner):
    def __init__(self, held: Held, block_tokens: int) -> None:
        super().__init__(FakeOptions(), block_tokens=block_tokens)
        self._held = held

    def run(self, rows: Any) -> Any:
        is_probe = all(row.purpose == "probe" for row in rows)
        if not self._held.is_free and not is_probe:
            assert self._held.steps.acquire(timeout=WAIT_S)
        drawn = super().run(rows)
        for i, row in enumerate(rows):
            failure = self._held.fails(row.seq_id, row.start + len(row.tokens))
            drawn[i] = failure or drawn[i]  # type: ignore[assignment]
        return drawn


HELD_MODEL = ModelSpec(engine="held", price=FAKE_MODEL.price)


class SlowLedger:
    """Stands before a node's ledger: keeps entries back until they are let go, or fails them."""

    def __init__(self, host: TestHost) -> None:
        self._ledger = host.host.books.ledger
        self._record = self._ledger.record
        self.waiting: list[tuple[Entry, Future[Recorded]]] = []
        self.raises: Exception | None = None

    def record(self, entry: Entry) -> Future[Recorded]:
        if self.raises is not None:
            raise self.raises
        future: Future[Recorded] = Future()
        future.set_running_or_notify_cancel()
        self.waiting.append((entry, future))
        return future

    def settle(self, entry: Entry) -> "asyncio.Future[Recorded]":
        return asyncio.wrap_future(self.record(entry))

    def let_go(self) -> None:
        for entry, future in self.waiting:
            future.set_result(self._record(entry).result())
        self.waiting.clear()

    def fail(self, error: Exception) -> None:
        for _, future in self.waiting:
            future.set_exception(error)
        self.waiting.clear()


@contextmanager
def slow_ledger(host: TestHost) -> Iterator[SlowLedger]:
    slow = SlowLedger(host)
    ledger: Any = slow._ledger
    ledger.record, ledger.settle = slow.record, slow.settle
    ledger.settle_then = then_by(slow.settle)
    ledger.settle_together = together_by(slow.settle)
    try:
        yield slow
    finally:
        del ledger.record, ledger.settle, ledger.settle_then, ledger.settle_together


def asks(text: str = "hello world", **facts: Any) -> GenerationRequest:
    """A completion for the model `m`; each call is another request."""
    known: dict[str, Any] = {
        "request_id": f"req_{next(_numbers):024d}",
        "kind": Kind.COMPLETION,
        "model": "m",
        "prompts": (text,),
        "max_tokens": 4,
        "sampling": Sampling(temperature=0.0),
    }
    return GenerationRequest(**{**known, **facts})


_numbers = iter(range(10**9))


async def read_all(exchange: Exchange) -> str:
    text = ""
    while fresh := await exchange.read():
        text += "".join(delta.text for delta in fresh)
    return text


async def until(is_true: Callable[[], object]) -> None:
    """Give other tasks and threads their turn until it is so."""
    async with asyncio.timeout(WAIT_S):
        while not is_true():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.001)


async def settled(host: TestHost) -> list[dict[str, Any]]:
    """The ledger, once everything that runs has ended and been written."""
    await until(lambda: host.host.processor.in_flight == 0)
    await host.host.books.ledger._writer.run(lambda connection: None)
    return host.entries()


async def bill_of(host: TestHost) -> tuple[list[str], int]:
    """What is wrong with the bill of all that was asked in March 2026, and what more it would be at another price."""
    books = host.host.books
    [org] = {entry["org"] for entry in host.entries()}
    statement = books.statements.make(org, "2026-03")
    key = books.statements.key["public_key"]
    verdict = check(statement, entries=host.entries(), public_key=key)
    dear = Price(version="dear", input_nano=10**9, cached_input_nano=10**9, output_nano=10**9)
    wanted = Rerating(rerate_id="r", model="fake", since_ns=0, until_ns=2**62, price=dear)
    found = await books.rerater.try_out(wanted)
    return verdict.problems, sum(each.difference_nano for each in found)
