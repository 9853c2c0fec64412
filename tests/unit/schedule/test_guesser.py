"""Speculation in a running engine loop: same answers, fewer steps, and everything that was taken is given back."""

from collections.abc import Callable, Sequence

from tests.unit.engines.guessing import Eager, Scripted
from tests.unit.schedule.kit import VOCAB, Workbench, a_spec, some_limits
from tests.unit.schedule.test_engine_loop import Reader, Spoilt, make_engine

from llmhost.core.output import FinishReason
from llmhost.core.ports import DraftAsk
from llmhost.core.step import StepResult
from llmhost.engines.fake import fake_answer
from llmhost.schedule.drafting import PromptLookup
from llmhost.schedule.guesser import Guesser
from llmhost.schedule.scheduler import Scheduler


def right(ask: DraftAsk) -> list[int]:
    return fake_answer(ask.tokens, ask.most, VOCAB)


def half_right(ask: DraftAsk) -> list[int]:
    return [*fake_answer(ask.tokens, ask.most // 2, VOCAB), *[3] * ask.most]


def wrong(ask: DraftAsk) -> list[int]:
    return [(right(ask)[0] + 1) % VOCAB] * ask.most


class Noted(Scripted):
    """Knows which sequences it was told to forget, and counts device time."""

    def __init__(self, guess: Callable[[DraftAsk], Sequence[int]]) -> None:
        super().__init__(guess)
        self.forgotten: list[int] = []
        self.is_closed = False

    def propose(self, asks: Sequence[DraftAsk]) -> list[Sequence[int]]:
        self.device_ns += 1_000
        return super().propose(asks)

    def forget(self, seq_id: int) -> None:
        self.forgotten.append(seq_id)

    def close(self) -> None:
        self.is_closed = True


async def answers(
    drafter: Scripted | PromptLookup, scheduler: Scheduler, count: int = 5
) -> tuple[list[Reader], list[StepResult]]:
    steps: list[StepResult] = []
    engine = make_engine(
        Spoilt(),
        scheduler=scheduler,
        on_step=lambda result: steps.append(result),
        guesser=Guesser(drafter, Eager()),
    )
    engine.start()
    readers = [Reader() for _ in range(count)]
    for n, reader in enumerate(readers):
        engine.submit(a_spec((n, 1, 2), index=n, max_new_tokens=12 + n), reader)
    for reader in readers:
        await reader.end()
    await engine.stop()
    return readers, steps


async def test_answers_are_whole_and_the_same_whoever_guesses():
    limits = some_limits(max_tokens_per_batch=16)
    for drafter in (Scripted(right), Scripted(half_right), Scripted(wrong), PromptLookup()):
        scheduler = Scheduler(limits)
        readers, _ = await answers(drafter, scheduler)
        for n, reader in enumerate(readers):
            assert reader.tokens == fake_answer((n, 1, 2), 12 + n, VOCAB)
            assert reader.deltas[-1].finish_reason is FinishReason.LENGTH
            assert reader.deltas[-1].usage is not None
            assert reader.deltas[-1].usage.completion_tokens == 12 + n


async def test_right_guesses_save_steps_and_wrong_ones_are_the_operators():
    _, few = await answers(Scripted(right), cheap := Scheduler(some_limits()), count=1)
    _, many = await answers(Scripted(wrong), dear := Scheduler(some_limits()), count=1)

    assert len(few) < len(many) / 2
    assert cheap.accounts.operator_ns == 0
    assert dear.accounts.operator_ns > 0


async def test_guesses_at_an_answer_that_was_predicted_are_counted_with_it():
    said = fake_answer((0, 1, 2), 12, VOCAB)
    wrong_at_8 = [*said[:7], (said[7] + 1) % VOCAB, *said[8:]]
    engine = make_engine(
        Spoilt(), scheduler=Scheduler(some_limits()), guesser=Guesser(PromptLookup(), Eager())
    )
    engine.start()
    usages = []
    for place, prediction in enumerate((tuple(said), tuple(wrong_at_8), ())):
        reader = Reader()
        spec = a_spec((0, 1, 2), index=place, max_new_tokens=12, predicted=prediction)
        engine.submit(spec, reader)
        await reader.end()
        assert reader.tokens == said
        usages.append(reader.deltas[-1].usage)
    await engine.stop()
    whole, part, none = usages

    assert whole.right_guesses > 6
    assert whole.wrong_guesses == 0
    assert 0 < part.right_guesses < 12
    assert part.wrong_guesses > 0
    assert (none.right_guesses, none.wrong_guesses) == (0, 0)


async def test_a_draft_models_time_is_the_operators():
    drafter = Noted(right)
    await answers(drafter, scheduler := Scheduler(some_limits()), count=1)
    assert scheduler.accounts.operator_ns == drafter.device_ns > 0


async def test_sequences_that_have_ended_are_forgotten_and_a_drafter_is_closed():
    drafter = Noted(right)
    await answers(drafter, Scheduler(some_limits()))
    assert sorted(drafter.forgotten) == [1, 2, 3, 4, 5]
    assert drafter.is_closed


async def test_a_loop_that_never_ran_closes_its_drafter_too():
    drafter = Noted(right)
    engine = make_engine(Spoilt(), guesser=Guesser(drafter, Eager()))
    await engine.stop()
    assert drafter.is_closed


def test_with_more_sequences_than_speculation_is_for_nobody_is_asked():
    speculation = Eager()
    speculation.most_sequences = 1
    guesser = Guesser(Scripted(right), speculation)
    bench = Workbench(some_limits())
    first, _ = bench.add(a_spec(max_new_tokens=6)), bench.add(a_spec(max_new_tokens=6))
    bench.step()

    guesser.guess(bench.scheduler)
    rows = bench.scheduler.plan()
    assert {row.drafts for row in rows} == {0}

    bench.scheduler.unplan(rows)
    bench.cancel(first)
    guesser.guess(bench.scheduler)
    assert [row.drafts for row in bench.scheduler.plan()] == [4]
