"""Stand-ins for what a deployment stands on: effects that are recorded, and an engine kind that fails when told to."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from llmhost.config.schema.engines import FakeOptions
from llmhost.config.schema.models import ModelSpec
from llmhost.core.errors import LlmhostError
from llmhost.core.events import DeploymentChanged
from llmhost.core.ports import RunnerFacts, Tokenizer
from llmhost.core.sequence import ModelRef
from llmhost.core.step import Drawn, KvMove, Row
from llmhost.deploy.catalogue import ModelEntry
from llmhost.deploy.deployment import Deployment
from llmhost.deploy.memory_plan import MemoryPlan
from llmhost.deploy.replica import Replica
from llmhost.engines.fake import FakeRunner
from llmhost.testing import ManualClock, at
from llmhost.text.words import WordTokenizer

PLAN = MemoryPlan(weights_bytes=100, kv_blocks=4, kv_bytes=20, max_sequence_length=64)


def entry(name: str = "m", version: int = 1, **spec: Any) -> ModelEntry:
    return ModelEntry(ModelRef(name, version), ModelSpec(**{"engine": "fake", **spec}), 0)


def facts(**changes: Any) -> RunnerFacts:
    known: dict[str, Any] = {
        "device": "cpu:0",
        "vocab_size": 64,
        "max_sequence_length": 256,
        "block_tokens": 16,
        "kv_block_bytes": 10,
        "weights_bytes": 1000,
    }
    return RunnerFacts(**{**known, **changes})


async def settle() -> None:
    """Let every task that can run, run."""
    for _ in range(8):
        await asyncio.sleep(0)


class IdleEngine:
    """An engine loop that has nothing to do."""

    live = 0


@dataclass
class RecordedEffects:
    """Effects that note what was asked. `gate` holds loads back while it is clear, `unload_gate` unloads."""

    done: list[str] = field(default_factory=list)
    fails: list[BaseException] = field(default_factory=list)
    """What the next loads raise, first to last."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    unload_gate: asyncio.Event = field(default_factory=asyncio.Event)
    breaks: list[Callable[[LlmhostError], None]] = field(default_factory=list)
    """Each loaded engine's way to say that it gave up."""
    held: int = 0
    """Leases that are out."""
    sleep_refusal: LlmhostError | None = None

    def __post_init__(self) -> None:
        self.gate.set()
        self.unload_gate.set()

    async def load(self, entry: ModelEntry, on_broken: Callable[[LlmhostError], None]) -> Replica:
        self.done.append("load")
        await self.gate.wait()
        if self.fails:
            raise self.fails.pop(0)
        assert self.held == 0, "the memory of the one before has not come back"
        self.held += 1
        self.breaks.append(on_broken)
        return Replica(
            devices=("cpu:0",),
            engine=cast(Any, IdleEngine()),
            tokenizer=cast(Tokenizer, None),
            plan=PLAN,
            facts=facts(),
            lease_holder=str(entry.ref),
            load_s=0.0,
            ready_utc_ns=0,
            measured_bytes=0,
        )

    async def unload(self, replica: Replica, *, drain_s: float) -> None:
        self.done.append(f"unload {drain_s:g}")
        await self.unload_gate.wait()
        self.held -= 1
        self.done.append("unloaded")

    def check_sleep(self, replica: Replica) -> None:
        if self.sleep_refusal is not None:
            raise self.sleep_refusal

    async def sleep(self, replica: Replica, *, drain_s: float) -> int:
        self.done.append(f"sleep {drain_s:g}")
        await self.unload_gate.wait()
        if self.fails:
            raise self.fails.pop(0)
        return replica.plan.weights_bytes

    async def wake(self, replica: Replica) -> None:
        self.done.append("wake")
        await self.gate.wait()
        if self.fails:
            raise self.fails.pop(0)


@dataclass
class Stage:
    """One deployment and all that it touches."""

    effects: RecordedEffects = field(default_factory=RecordedEffects)
    clock: ManualClock = field(default_factory=lambda: at("2026-01-10T03:00Z"))
    events: list[DeploymentChanged] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.deployment = Deployment(entry(), self.effects, self.clock, self.events.append)

    @property
    def states(self) -> list[str]:
        return [event.state for event in self.events]


class ToyRunner(FakeRunner):
    """The fake runner with facts of its own; `fails` raises at that moment."""

    def __init__(self, own: RunnerFacts, fails: dict[str, BaseException]) -> None:
        super().__init__(FakeOptions(vocab=own.vocab_size), block_tokens=own.block_tokens)
        self.facts = own
        self.is_closed = False
        self._fails = fails

    def set_host_blocks(self, count: int) -> None:
        self.host_blocks = count

    def move_blocks(self, moves: Sequence[KvMove]) -> None:
        assert not moves

    def set_kv_blocks(self, count: int) -> None:
        if count and "kv" in self._fails:
            raise self._fails["kv"]
        super().set_kv_blocks(count)

    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        if "run" in self._fails:
            raise self._fails["run"]
        return super().run(rows)

    def close(self) -> None:
        self.is_closed = True
        super().close()


@dataclass
class ToyKind:
    """An engine kind whose acts are noted, and raise what `fails` has for them."""

    facts: RunnerFacts = field(default_factory=facts)
    fails: dict[str, BaseException] = field(default_factory=dict)
    needs_files: bool = False
    done: list[str] = field(default_factory=list)
    runners: list[ToyRunner] = field(default_factory=list)
    on_load: Callable[[], None] = lambda: None
    loaded: RunnerFacts | None = None
    """What a loaded model really is, where that differs from the prediction."""

    def footprint(self, spec: ModelSpec, folder: Path | None) -> RunnerFacts:
        self._note("footprint")
        return self.facts

    def load(self, spec: ModelSpec, folder: Path | None, predicted: RunnerFacts) -> ToyRunner:
        self.on_load()
        self._note("load")
        self.runners.append(ToyRunner(self.loaded or self.facts, self.fails))
        return self.runners[-1]

    def tokenizer(self, spec: ModelSpec, folder: Path | None) -> Tokenizer:
        self._note("tokenizer")
        return WordTokenizer(self.facts.vocab_size)

    def device_bytes(self, device: str) -> int | None:
        self._note("device_bytes")
        return 10_000 if device.startswith("toy") else None

    def _note(self, act: str) -> None:
        self.done.append(act)
        if act in self.fails:
            raise self.fails[act]
