"""A request of many sequences: never more than its share with the engine, and each ends once whatever happens."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from llmhost.core.errors import Overloaded
from llmhost.core.output import Delta, FinishReason
from llmhost.core.ports import DeltaSink, EngineLoad
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import ModelRef, SequenceSpec
from llmhost.pipeline.pacing import PacedEngine

SPEC = SequenceSpec(
    request_id="r",
    index=0,
    model=ModelRef("m", 1),
    prompt=(1,),
    sampling=Sampling(),
    seed=0,
    max_new_tokens=0,
)


class Engine:
    """Takes up to `room` sequences and ends them when it is told to."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sinks: dict[int, DeltaSink] = {}
        self.specs: dict[int, SequenceSpec] = {}
        self.most = 0
        self._next = 100

    @property
    def live(self) -> int:
        return len(self.sinks)

    def submit(self, spec: SequenceSpec, sink: DeltaSink) -> int:
        if len(self.sinks) >= self.room:
            raise Overloaded("full")
        self._next += 1
        self.sinks[self._next], self.specs[self._next] = sink, spec
        self.most = max(self.most, len(self.sinks))
        return self._next

    def cancel(self, seq_id: int) -> None:
        self.end(seq_id, FinishReason.CANCELLED)

    def end(self, seq_id: int, reason: FinishReason = FinishReason.STOP) -> None:
        if seq_id in self.sinks:
            self.sinks.pop(seq_id)(Delta(self.specs[seq_id].index, finish_reason=reason))

    def allow(self, seq_id: int, held_tokens: int, *, is_final: bool = False) -> None:
        if seq_id in self.sinks:
            self.specs[seq_id] = self.specs[seq_id].allowed(held_tokens, is_final=is_final)

    def load(self) -> EngineLoad:
        return EngineLoad()

    def resize_kv(self, blocks: int) -> None: ...

    async def stop(self, *, drain_s: float = 0.0) -> None: ...


class Reader:
    def __init__(self) -> None:
        self.ends: list[tuple[int, FinishReason | None]] = []
        self.on_end: Callable[[], None] = lambda: None

    def __call__(self, delta: Delta) -> None:
        self.ends.append((delta.index, delta.finish_reason))
        self.on_end()


def submit(paced: PacedEngine, reader: Reader, count: int) -> list[int]:
    return [paced.submit(structs.replace(SPEC, index=i), reader) for i in range(count)]


@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 30), st.randoms(use_true_random=False))
def test_every_sequence_ends_once_and_no_more_than_its_share_is_with_the_engine(
    most_live: int, room: int, count: int, rng: object
) -> None:
    engine, reader = Engine(room), Reader()
    paced = PacedEngine(engine, most_live)

    submit(paced, reader, count)
    while engine.sinks:
        engine.end(rng.choice(list(engine.sinks)))  # type: ignore[attr-defined]

    assert sorted(reader.ends) == [(i, FinishReason.STOP) for i in range(count)]
    assert engine.most <= min(most_live, room)
    assert paced.live == 0


def test_an_engine_that_takes_nothing_refuses_the_request() -> None:
    with pytest.raises(Overloaded):
        submit(PacedEngine(Engine(0), 4), Reader(), 3)


def test_what_is_paid_for_reaches_those_that_run_and_those_that_wait() -> None:
    engine, reader = Engine(9), Reader()
    paced = PacedEngine(engine, 1)
    spec = structs.replace(SPEC, max_new_tokens=40, held_tokens=5)
    first, second = paced.submit(spec, reader), paced.submit(spec, reader)

    paced.allow(first, 7)
    paced.allow(second, 9, is_final=True)
    paced.allow(77, 9)
    [running] = engine.specs.values()
    engine.end(next(iter(engine.sinks)))
    *_, waited = engine.specs.values()

    assert (running.held_tokens, running.max_new_tokens) == (7, 40)
    assert (waited.held_tokens, waited.max_new_tokens) == (9, 9)


async def test_a_cancelled_one_that_waited_still_ends_and_a_running_one_is_told() -> None:
    engine, reader = Engine(9), Reader()
    paced = PacedEngine(engine, 2)
    ids = submit(paced, reader, 5)

    for seq_id in (*ids, 77):
        paced.cancel(seq_id)
    await asyncio.sleep(0)

    assert sorted(reader.ends) == [(i, FinishReason.CANCELLED) for i in range(5)]
    assert engine.live == paced.live == 0


async def test_an_engine_that_stops_taking_ends_what_waits_with_its_reason() -> None:
    engine, reader = Engine(9), Reader()
    paced = PacedEngine(engine, 1)
    submit(paced, reader, 3)
    engine.room = 0

    engine.end(next(iter(engine.sinks)))

    assert reader.ends == [
        (0, FinishReason.STOP),
        (1, FinishReason.ERROR),
        (2, FinishReason.ERROR),
    ]


async def test_a_reader_that_cancels_all_at_a_failure_hears_each_end_once() -> None:
    engine, reader = Engine(9), Reader()
    paced = PacedEngine(engine, 2)
    ids = submit(paced, reader, 6)

    def give_up() -> None:
        reader.on_end = lambda: None
        for seq_id in ids:
            paced.cancel(seq_id)

    reader.on_end = give_up
    engine.end(next(iter(engine.sinks)), FinishReason.ERROR)
    await asyncio.sleep(0)

    assert sorted(index for index, _ in reader.ends) == list(range(6))


def test_other_calls_reach_the_engine() -> None:
    paced = PacedEngine(Engine(3), 2)
    assert paced.load() == EngineLoad()
