"""Models for an hour that a test's clock makes: real schedulers, steps that take as long as they are told to."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tests.unit.engines.guessing import Eager
from tests.unit.schedule.kit import BLOCK_TOKENS, VOCAB, SpelledWatch, a_spec, some_limits

from llmhost.config.schema.engines import FakeOptions
from llmhost.core.errors import EngineFailed, OutOfMemory
from llmhost.core.output import Usage
from llmhost.core.ports import EngineLoad, Lane, LaneAccount, Turn
from llmhost.core.sequence import Purpose, SequenceSpec
from llmhost.core.step import Drawn, KvMove, Row, StepResult
from llmhost.engines.fake import FakeFlight, FakeRunner
from llmhost.schedule.bed import Bed
from llmhost.schedule.draft_model import ModelDrafter
from llmhost.schedule.engine_loop import FAILURES_IN_A_ROW
from llmhost.schedule.flights import Flights
from llmhost.schedule.guesser import Guesser
from llmhost.schedule.scheduler import Emission, Scheduler
from llmhost.schedule.stepping import Stepper
from llmhost.testing import ManualClock

Pass = Callable[[int], None]
"""Lets so many nanoseconds pass."""


@dataclass
class Times:
    """What a device did with its time, as the clock saw it pass."""

    busy_ns: int = 0
    idle_ns: int = 0
    """Loads not counted."""
    load_ns: int = 0
    """Booked ones."""
    is_busy: bool = False
    loads: set[int] = field(default_factory=set)
    """Under way."""
    not_booked: list[tuple[int, frozenset[int]]] = field(default_factory=list)
    """Idle stretches of loads, and whose they are."""

    def passes(self, ns: int) -> None:
        if self.is_busy:
            self.busy_ns += ns
            return
        self.idle_ns += ns
        if self.loads:
            self.not_booked.append((ns, frozenset(self.loads)))

    def end_load(self, load: int) -> int:
        """What of it was not booked with another."""
        self.loads.discard(load)
        booked = sum(ns for ns, loads in self.not_booked if load in loads)
        self.not_booked = [part for part in self.not_booked if load not in part[1]]
        self.idle_ns -= booked
        self.load_ns += booked
        return booked


class HourClock(ManualClock):
    """Moves when an act makes it, and keeps account for every device beside what the node keeps."""

    times: defaultdict[str, Times]

    def passes(self, ns: int) -> None:
        self._monotonic_ns += ns
        self._utc_ns += ns
        for times in self.times.values():
            times.passes(ns)


def hour_clock(start: ManualClock) -> HourClock:
    clock = HourClock(start.utc_now())
    clock.times = defaultdict(Times)
    return clock


class SeenLane:
    """A lane that is watched: its turns, one after the other. Implements the Lane port."""

    def __init__(self, lane: Lane, times: Times) -> None:
        self._lane = lane
        self._times = times
        self.turns: list[Turn] = []
        self.is_wanted = False

    @property
    def opened_ns(self) -> int | None:
        return self._lane.opened_ns

    def account(self) -> LaneAccount:
        return self._lane.account()

    def take(self) -> Turn:
        assert not self._times.is_busy or self.opened_ns is None
        turn = self._lane.take()
        self._times.is_busy = True
        return turn

    def split(self, turn: Turn) -> Turn:
        after = self._lane.split(turn)
        self.turns.append(turn)
        return after

    def give(self, turn: Turn) -> None:
        self._lane.give(turn)
        self.turns.append(turn)
        self._times.is_busy = False

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        turn = self.take()
        try:
            yield turn
        finally:
            self.give(turn)


class SlowRunner(FakeRunner):
    """Its steps take time, and sometimes fail: all of it, for one row, for want of memory, or in the air."""

    def __init__(self, luck: random.Random, passes: Pass, *, runs_ahead: bool) -> None:
        super().__init__(FakeOptions(vocab=VOCAB), block_tokens=BLOCK_TOKENS, runs_ahead=runs_ahead)
        self._luck, self._passes = luck, passes
        self.bad_luck = 0.0
        """How likely a step is to fail."""

    def _work(self) -> None:
        self._passes(self._luck.randrange(1, 60_000_000))
        if self._luck.random() < self.bad_luck:
            raise self._luck.choice([ValueError("a bad step"), OutOfMemory("too large a step")])

    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        self._work()
        drawn = super().run(rows)
        if self._luck.random() < self.bad_luck:
            drawn[self._luck.randrange(len(drawn))] = EngineFailed("a bad row")
        return drawn

    def launch(self, rows: Sequence[Row]) -> FakeFlight:
        self._passes(self._luck.randrange(1, 1_000_000))
        if self._luck.random() < self.bad_luck:
            raise ValueError("not launched")
        return replace(super().launch(rows), wait=self._work)

    def move_blocks(self, moves: Sequence[KvMove]) -> None:
        self._passes(self._luck.randrange(1, 5_000_000))
        if self._luck.random() < self.bad_luck:
            raise ValueError("not moved")
        super().move_blocks(moves)


class Forgetful(SlowRunner):
    """One that does not always say what the model that it guesses for says."""

    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        said = super().run(rows)
        return [
            (one + 1) % VOCAB if isinstance(one, int) and self._luck.random() < 0.3 else one
            for one in said
        ]


@dataclass
class Asked:
    """A request of a caller, or the check of a loaded model."""

    spec: SequenceSpec
    ticket: Any = None
    usage: Usage | None = None


class Model:
    """A loaded model, driven by hand as its engine loop would drive it."""

    def __init__(
        self,
        name: str,
        device: str,
        lane: SeenLane,
        clock: HourClock,
        luck: random.Random,
        *,
        runs_ahead: bool,
        guesses: bool,
    ) -> None:
        self.name, self.device, self.lane = name, device, lane
        self.runner = SlowRunner(luck, clock.passes, runs_ahead=runs_ahead)
        limits = some_limits(
            kv_blocks=luck.choice([10, 14, 32]), host_kv_blocks=luck.choice([0, 4])
        )
        self.scheduler = Scheduler(limits)
        self.runner.set_kv_blocks(limits.kv_blocks)
        self.runner.set_host_blocks(limits.host_kv_blocks)
        self.guesser = _guesser(lane, clock, luck) if guesses else None
        self.results: list[StepResult] = []
        self.stepper = Stepper(
            name,
            self.runner,
            self.scheduler,
            lane=lane,
            guesser=self.guesser,
            on_step=lambda result: self.results.append(result),
        )
        self.flights = Flights(self.runner, self.scheduler, self.stepper, lane)
        self.bed = Bed(self.runner, self.scheduler, self.guesser)
        self.live: dict[int, Asked] = {}
        self.is_asleep = False
        self.load_id: str | None = None
        self._luck = luck
        self._load = self.scheduler.load()
        self._ids = iter(range(1, 10**9))

    def load(self) -> EngineLoad:
        """As the event loop sees it: what was true after the last turn."""
        return self._load

    @property
    def is_broken(self) -> bool:
        return self.stepper.failures >= FAILURES_IN_A_ROW

    def ask(self, ticket: Any = None, purpose: Purpose = Purpose.CALLER) -> list[Asked]:
        luck, seq_id = self._luck, next(self._ids)
        most = luck.randrange(1, 14)
        spec = a_spec(
            [luck.randrange(luck.choice([1, VOCAB])) for _ in range(luck.randrange(1, 24))],
            max_new_tokens=most,
            purpose=purpose,
            tenant=luck.choice("abc"),
            priority=luck.randrange(3),
            stop_token_ids=frozenset({luck.randrange(VOCAB)}),
            held_tokens=luck.choice([None, luck.randrange(1, most + 1)]),
        )
        self.live[seq_id] = Asked(spec, ticket)
        return self._hear([self.scheduler.add(seq_id, spec, SpelledWatch())])

    def turn(self, *, guess: bool) -> list[Asked]:
        """One turn of its loop; whoever ended in it."""
        return self._hear(self._turn(guess=guess))

    def _turn(self, *, guess: bool) -> Sequence[Emission | None]:
        if not self.flights.is_up:
            if guess and self.guesser is not None:
                self.guesser.guess(self.scheduler)
            rows = self.scheduler.plan()
            if not rows:
                return self._pay()
            if not self.flights.may_launch(rows):
                return self.stepper.step(rows)
            if not self.flights.launch(rows):
                return []
        if ahead := self.scheduler.plan_ahead():
            self.flights.launch(ahead)
        return self.flights.land() if self.flights.is_up else []

    def _pay(self) -> list[Emission | None]:
        """More tokens for who waits for them, or the word that no more come."""
        paid = []
        for seq_id, asked in list(self.live.items()):
            if (held_tokens := asked.spec.held_tokens) is not None:
                asked.spec = asked.spec.allowed(held_tokens + 2)
                is_final = self._luck.random() < 0.3
                paid.append(self.scheduler.allow(seq_id, held_tokens + 2, is_final=is_final))
        return paid

    def land(self) -> list[Asked]:
        """Have nothing on the device."""
        return self._hear(self.flights.land_all())

    def cancel(self) -> list[Asked]:
        return self._hear([self.scheduler.cancel(self._luck.choice(list(self.live)))])

    def preempt(self) -> list[Asked]:
        ended = self.land()
        self.scheduler.preempt(seq_id for seq_id in self.live if self._luck.random() < 0.5)
        return ended

    def resize(self) -> list[Asked]:
        ended, blocks = self.land(), self._luck.choice([6, 10, 20, 40])
        ended += self._hear(self.scheduler.resize_kv(blocks))
        self.runner.set_kv_blocks(blocks)
        return ended

    def end(self) -> list[Asked]:
        """Whoever is here is cut."""
        ended = self.land()
        return ended + self._hear(self.scheduler.fail(self.scheduler.ids(), EngineFailed("cut")))

    def _hear(self, emissions: Sequence[Emission | None]) -> list[Asked]:
        ended = []
        for seq_id, delta in (one for one in emissions if one is not None):
            if delta.finish_reason is not None:
                asked = self.live.pop(seq_id)
                asked.usage = delta.usage
                ended.append(asked)
                if self.guesser is not None:
                    self.guesser.forget_ended([(seq_id, delta)])
        self._load = self.scheduler.load()
        self.scheduler.check()
        return ended


def _guesser(lane: SeenLane, clock: HourClock, luck: random.Random) -> Guesser:
    """A smaller model on the same device."""
    small = Forgetful(luck, clock.passes, runs_ahead=False)
    small.set_kv_blocks(24)
    drafter = ModelDrafter("small", small, lane=lane, kv_blocks=24, vocab_size=VOCAB)
    return Guesser(drafter, Eager(), clock.monotonic_ns)
