"""The plan as a pure function: what it grants, to whom, and who gives way."""

from copy import deepcopy
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.schedule.plan import Budget, StepPlan, plan_step

SIZE = 4


@dataclass(slots=True)
class Job:
    """A sequence as the plan sees it."""

    seq_id: int
    known: int
    fed: int = 0
    held: int = 0
    priority: int = 0
    drafts: int = 0
    is_atomic: bool = False

    @property
    def key(self) -> tuple[int, int, int]:
        return (self.priority, 0, self.seq_id)

    @property
    def todo(self) -> int:
        return self.known - self.fed


def decoder(seq_id: int, known: int) -> Job:
    """All computed but the last token; its blocks are those that the computed ones need."""
    return Job(seq_id, known, known - 1, -(-(known - 1) // SIZE))


def a_budget(**changes: int) -> Budget:
    return Budget(tokens=16, sequences=8, free_blocks=16, block_tokens=SIZE)._replace(**changes)


@st.composite
def running_jobs(draw: st.DrawFn) -> list[Job]:
    jobs = []
    for seq_id in range(1, draw(st.integers(0, 6)) + 1):
        known = draw(st.integers(1, 20))
        computed = draw(st.one_of(st.just(known - 1), st.integers(0, known - 1)))
        jobs.append(Job(seq_id, known, computed, -(-computed // SIZE)))
    return jobs


waiting_jobs = st.lists(st.integers(1, 20), max_size=5).map(
    lambda lengths: [Job(100 + place, known) for place, known in enumerate(lengths)]
)
budgets = st.builds(
    Budget,
    tokens=st.integers(0, 24),
    sequences=st.integers(1, 8),
    free_blocks=st.integers(0, 10),
    block_tokens=st.just(SIZE),
    watermark_blocks=st.integers(0, 3),
    prompt_tokens=st.none(),
)


def blocks_missing(job: Job, share: int) -> int:
    return max(-(-(job.fed + share) // SIZE) - job.held, 0)


@given(running_jobs(), waiting_jobs, budgets)
@settings(max_examples=300, deadline=None)
def test_any_plan_keeps_its_budget_and_the_order(
    running: list[Job], waiting: list[Job], budget: Budget
) -> None:
    before = deepcopy((running, waiting, budget))
    plan = plan_step(running, waiting, budget)
    assert (running, waiting, budget) == before, "a plan changes nothing"
    assert plan == plan_step(running, waiting, budget), "same inputs, same plan"

    jobs = {job.seq_id: job for job in [*running, *waiting]}
    granted = dict(plan.grants)
    assert len(granted) == len(plan.grants), "nobody is granted twice"
    assert sum(granted.values()) <= budget.tokens
    assert all(1 <= share <= jobs[seq_id].todo for seq_id, share in plan.grants)

    freed = sum(jobs[seq_id].held for seq_id in plan.preempted)
    taken = sum(blocks_missing(jobs[seq_id], share) for seq_id, share in plan.grants)
    assert taken <= budget.free_blocks + freed

    ids = [job.seq_id for job in running]
    kept = ids[: len(ids) - len(plan.preempted)]
    assert sorted(plan.preempted) == ids[len(kept) :], "the largest keys give way"
    assert list(plan.admitted) == [job.seq_id for job in waiting[: len(plan.admitted)]]
    assert set(granted) <= {*kept, *plan.admitted}
    assert not (plan.preempted and plan.admitted)
    assert len(kept) + len(plan.admitted) <= max(budget.sequences, len(running))

    decoders = [seq_id for seq_id in kept if jobs[seq_id].todo == 1]
    assert sum(seq_id in granted for seq_id in decoders) == min(len(decoders), budget.tokens)


@given(running_jobs(), waiting_jobs, budgets)
@settings(max_examples=200, deadline=None)
def test_what_is_admitted_has_room_for_all_its_known_tokens(
    running: list[Job], waiting: list[Job], budget: Budget
) -> None:
    plan = plan_step(running, waiting, budget)
    if plan.admitted:
        kept = [*running, *waiting[: len(plan.admitted)]]
        promised = sum(blocks_missing(job, job.todo) for job in kept)
        assert promised <= budget.free_blocks - (budget.watermark_blocks if running else 0)


@given(running_jobs(), waiting_jobs, budgets)
@settings(max_examples=200, deadline=None)
def test_a_plan_is_only_empty_where_nothing_can_run(
    running: list[Job], waiting: list[Job], budget: Budget
) -> None:
    plan = plan_step(running, waiting, budget)
    if budget.tokens and not plan.grants and not plan.preempted:
        assert not running
        assert not waiting or blocks_missing(waiting[0], waiting[0].todo) > budget.free_blocks


@given(running_jobs(), budgets)
@settings(max_examples=100, deadline=None)
def test_nobody_gives_way_while_there_is_room(running: list[Job], budget: Budget) -> None:
    needed = sum(blocks_missing(job, job.todo) for job in running)
    assert plan_step(running, [], budget._replace(free_blocks=needed)).preempted == ()


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert plan_step([], [], a_budget()) == StepPlan()


def test_without_tokens_nobody_runs_and_nobody_gives_way() -> None:
    plan = plan_step([decoder(1, 5)], [Job(2, 3)], a_budget(tokens=0, free_blocks=0))
    assert plan == StepPlan(short_of="tokens")


@pytest.mark.parametrize(
    ("changes", "short_of"),
    [({"tokens": 1}, "tokens"), ({"sequences": 1}, "sequences"), ({"free_blocks": 2}, "blocks")],
)
def test_the_plan_says_what_the_next_one_waits_for(changes: dict[str, int], short_of: str) -> None:
    plan = plan_step([decoder(1, 4)], [Job(2, 12)], a_budget(**changes))
    assert plan.grants == ((1, 1),)
    assert plan.short_of == short_of


def test_the_watermark_is_left_free_beside_others_and_not_when_alone() -> None:
    budget = a_budget(free_blocks=3, watermark_blocks=1)
    assert plan_step([decoder(1, 4)], [Job(2, 12)], budget).short_of == "blocks"
    assert plan_step([], [Job(2, 12)], budget).admitted == (2,)
    assert plan_step([], [Job(2, 4), Job(3, 8)], budget).admitted == (2,)


def test_room_promised_to_a_prompt_in_chunks_is_not_given_to_the_next() -> None:
    chunked = Job(1, 16, 4, 1)
    plan = plan_step([chunked], [Job(2, 8)], a_budget(tokens=8, free_blocks=4))
    assert plan.grants == ((1, 8),)
    roomy = a_budget(tokens=16, free_blocks=4)
    assert plan_step([chunked], [Job(2, 8)], roomy).short_of == "blocks"
    assert plan_step([chunked], [Job(2, 4)], roomy).admitted == (2,)


def test_a_prompt_larger_than_all_free_blocks_waits() -> None:
    assert plan_step([], [Job(1, 40)], a_budget(free_blocks=9)) == StepPlan(short_of="blocks")


def test_one_that_waits_for_blocks_is_not_overtaken() -> None:
    plan = plan_step([decoder(1, 4)], [Job(2, 40), Job(3, 1)], a_budget(free_blocks=9))
    assert plan.admitted == ()


def test_a_chunk_shrinks_to_the_room_there_is() -> None:
    plan = plan_step([Job(1, 16, 3, 1)], [], a_budget(free_blocks=1))
    assert plan == StepPlan(grants=((1, 5),))


def test_a_decoder_without_room_gives_way_to_those_before_it() -> None:
    plan = plan_step([decoder(1, 5), decoder(2, 5), decoder(3, 5)], [], a_budget(free_blocks=1))
    assert plan == StepPlan(grants=((1, 1), (2, 1)), preempted=(3,))


def test_everyone_but_the_first_can_be_preempted_at_once() -> None:
    running = [Job(1, 20, 4, 1), decoder(2, 5), decoder(3, 5)]
    plan = plan_step(running, [Job(4, 1)], a_budget(tokens=14, free_blocks=0))
    assert plan.grants == ((1, 8),), "what the blocks of both have room for"
    assert plan.preempted == (3, 2)
    assert plan.admitted == ()


def test_the_last_one_gives_way_itself_when_it_is_alone() -> None:
    assert plan_step([decoder(1, 5)], [], a_budget(free_blocks=0)) == StepPlan(preempted=(1,))


def test_decoders_have_their_token_before_a_prompt_of_a_smaller_key_takes_its_chunk() -> None:
    plan = plan_step([Job(1, 40), decoder(2, 6), decoder(3, 6)], [], a_budget(tokens=10))
    assert plan.grants == ((1, 8), (2, 1), (3, 1))


def test_with_fewer_tokens_than_decoders_the_smallest_keys_run() -> None:
    plan = plan_step([decoder(n, 6) for n in (1, 2, 3)], [], a_budget(tokens=2))
    assert plan.grants == ((1, 1), (2, 1))
