"""What tests of speculation share: whole answers through the real scheduler, guessed at by whoever a test likes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tests.unit.schedule.kit import SpelledWatch

from llmhost.core.errors import EngineFailed
from llmhost.core.ports import DraftAsk, Drafter, Runner
from llmhost.core.sequence import SequenceSpec
from llmhost.core.step import StepResult, confirmed_drafts, split_exactly, work_units
from llmhost.schedule.guesser import Guesser
from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.scheduler import Scheduler
from llmhost.schedule.speculation import Speculation

BLOCKS = 256


class Eager(Speculation):
    """Guesses whether it pays or not."""

    def __init__(self, most_tokens: int = 4) -> None:
        super().__init__(most_tokens=most_tokens, most_sequences=64)

    def share_out(self, asks: Sequence[DraftAsk], sequences: int) -> list[DraftAsk]:
        return list(asks)


@dataclass
class Scripted:
    """A drafter that guesses what a test says. Implements the Drafter port."""

    guess: Callable[[DraftAsk], Sequence[int]]
    device_ns: int = 0
    device_nano: int = 0

    def propose(self, asks: Sequence[DraftAsk]) -> list[Sequence[int]]:
        return [self.guess(ask)[: ask.most] for ask in asks]

    def forget(self, seq_id: int) -> None: ...

    def close(self) -> None: ...


@dataclass
class Said:
    """Whole answers, and what it took."""

    answers: list[list[int]]
    steps: int = 0
    guessed: int = 0
    confirmed: int = 0


def say(runner: Runner, specs: Iterable[SequenceSpec], drafter: Drafter | None = None) -> Said:
    """Run `specs` together to their ends."""
    runner.set_kv_blocks(BLOCKS)
    limits = SchedulerLimits(
        max_batch_size=64,
        max_tokens_per_batch=256,
        max_sequence_length=runner.facts.max_sequence_length,
        kv_blocks=BLOCKS,
        block_tokens=runner.facts.block_tokens,
    )
    scheduler = Scheduler(limits)
    guesser = None if drafter is None else Guesser(drafter, Eager())
    said = Said([])
    for place, spec in enumerate(specs):
        said.answers.append([])
        scheduler.add(place, spec, SpelledWatch(spec.stop))
    while scheduler.has_work:
        if guesser is not None:
            guesser.guess(scheduler)
        rows = scheduler.plan()
        drawn = runner.run(rows)
        shares = split_exactly(1000, [work_units(row) for row in rows])
        for row, one in zip(rows, drawn, strict=True):
            assert not isinstance(one, EngineFailed), one
            said.guessed += row.drafts
            said.confirmed += confirmed_drafts(row, one)
        for place, delta in scheduler.absorb(StepResult(rows, drawn, 0, 1000, shares)):
            said.answers[place] += delta.tokens
        scheduler.check()
        said.steps += 1
    return said
