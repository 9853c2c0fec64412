"""Tokens that are paid for as they are made: none is made beyond, and what waits for its payment costs nothing."""

import random
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from tests.unit.schedule.kit import VOCAB, Workbench, a_spec, some_limits
from tests.unit.schedule.test_flights import Airfield, Stormy

from llmhost.core.output import FinishReason
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import SequenceSpec
from llmhost.engines.fake import fake_answer


@dataclass(frozen=True, slots=True)
class Paid:
    """How one sequence is paid for: the first tokens, then more each time that it has so many left, up to the last."""

    first: int
    more: int
    left: int
    last: int | None
    """None: all that it wants to say is paid for."""


payments = st.builds(
    Paid, st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.none() | st.integers(1, 20)
)
askers = st.lists(
    st.tuples(
        st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20),
        st.integers(1, 20),
        st.sets(st.integers(0, VOCAB - 1), max_size=1),
        payments,
    ),
    min_size=1,
    max_size=6,
)


def right_answer(spec: SequenceSpec, paid: Paid) -> list[int]:
    """What it says without a ceiling, as far as that is ever paid for."""
    words = fake_answer(spec.prompt, spec.max_new_tokens, VOCAB)
    end = next((at + 1 for at, word in enumerate(words) if word in spec.stop_token_ids), len(words))
    ever = spec.max_new_tokens if paid.last is None else max(paid.first, paid.last)
    return words[: min(end, ever)]


def pay(place: Airfield | Workbench, payers: dict[int, Paid]) -> None:
    """Whoever is short of tokens gets more of them."""
    for seq_id, paid in payers.items():
        heard = place.heard[seq_id]
        held_tokens = heard.spec.held_tokens
        assert held_tokens is not None
        assert len(heard.tokens) <= held_tokens
        if heard.last is None and held_tokens - len(heard.tokens) <= paid.left:
            wanted = held_tokens + paid.more
            is_final = paid.last is not None and wanted >= paid.last
            place.allow(
                seq_id, wanted if paid.last is None else min(wanted, paid.last), is_final=is_final
            )


def add_all(
    place: Airfield | Workbench, wishes: list[tuple[list[int], int, set[int], Paid]]
) -> dict[int, Paid]:
    payers = {}
    for prompt, most, stops, paid in wishes:
        spec = a_spec(
            prompt,
            max_new_tokens=most,
            stop_token_ids=frozenset(stops),
            held_tokens=paid.first,
        )
        payers[place.add(spec)] = paid
    return payers


@given(
    askers, st.sampled_from([10, 14, 32]), st.lists(st.booleans(), max_size=5), st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_paid_when_every_answer_is_the_one_without_ceilings(
    wishes: list[tuple[list[int], int, set[int], Paid]],
    blocks: int,
    right: list[bool],
    seed: int,
) -> None:
    bench = Workbench(some_limits(kv_blocks=blocks, host_kv_blocks=blocks // 4))
    chance = random.Random(seed)
    payers = add_all(bench, wishes)
    specs = {seq_id: bench.heard[seq_id].spec for seq_id in payers}
    while bench.scheduler.has_work:
        if right:
            bench.guess(right)
        bench.step()
        if bench.scheduler.is_held_up or chance.random() < 0.5:
            pay(bench, payers)

    bench.run_to_the_end()
    for seq_id, paid in payers.items():
        assert bench.heard[seq_id].tokens == right_answer(specs[seq_id], paid)


@given(
    askers,
    st.sampled_from([10, 14, 32]),
    st.lists(st.sampled_from(["fine", "fine", "fine", "launch", "land"]), max_size=12),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_steps_that_overlap_make_no_token_that_is_not_paid_for(
    wishes: list[tuple[list[int], int, set[int], Paid]],
    blocks: int,
    weather: list[str],
    seed: int,
) -> None:
    field = Airfield(Stormy(weather), some_limits(kv_blocks=blocks, host_kv_blocks=blocks // 4))
    chance = random.Random(seed)
    payers = add_all(field, wishes)
    specs = {seq_id: field.heard[seq_id].spec for seq_id in payers}
    while field.scheduler.has_work or field.flights.is_up:
        field.turn()
        if field.scheduler.is_held_up or chance.random() < 0.5:
            pay(field, payers)

    field.run_to_the_end()
    for seq_id, paid in payers.items():
        assert field.heard[seq_id].tokens == right_answer(specs[seq_id], paid)
    assert field.usage().engine_ns + field.scheduler.accounts.operator_ns == field.lane.totals()[0]


# ---------------------------------------------------------------- one by one


def test_what_has_used_up_its_tokens_waits_with_its_blocks_and_others_go_on() -> None:
    bench = Workbench(some_limits())
    short = bench.add(a_spec(held_tokens=2, max_new_tokens=9))
    other = bench.add(a_spec((7, 8), max_new_tokens=6))
    for _ in range(5):
        bench.step()

    [waits] = [s for s in bench.scheduler._running if s.seq_id == short]
    assert len(bench.heard[short].tokens) == 2
    assert waits.blocks
    assert len(bench.heard[other].tokens) == 5
    assert bench.scheduler.load().running == 2


def test_a_sequence_goes_on_where_it_was_when_more_is_paid() -> None:
    bench = Workbench(some_limits())
    seq_id = bench.add(a_spec(held_tokens=2, max_new_tokens=9))
    for _ in range(4):
        bench.step()
    assert bench.scheduler.is_held_up

    bench.allow(seq_id, 4)
    bench.step()
    assert not bench.scheduler.is_held_up
    bench.run_to_the_end()
    assert bench.heard[seq_id].tokens == fake_answer((1, 2, 3), 9, VOCAB)
    assert bench.scheduler.accounts.operator_ns == 0, "nothing was computed twice"


def test_fewer_tokens_than_before_and_those_who_are_gone_change_nothing() -> None:
    bench = Workbench(some_limits())
    gone = bench.add(a_spec(max_new_tokens=1))
    seq_id = bench.add(a_spec((7,), held_tokens=3, max_new_tokens=9))
    bench.step()
    for held_tokens in (3, 2, 0, -5):
        bench.allow(seq_id, held_tokens)
    bench.allow(gone, 20)
    assert bench.scheduler.allow(999, 5) is None
    for _ in range(5):
        bench.step()

    assert len(bench.heard[seq_id].tokens) == 3


def test_the_last_payment_is_an_end_like_any_other_limit() -> None:
    ended = Workbench(some_limits())
    seq_id = ended.add(a_spec(held_tokens=2, max_new_tokens=9))
    ended.allow(seq_id, 4, is_final=True)
    ended.allow(seq_id, 9)
    ended.run_to_the_end()
    plain = Workbench(some_limits())
    limited = plain.add(a_spec(max_new_tokens=4))
    plain.run_to_the_end()

    assert ended.heard[seq_id].last == plain.heard[limited].last
    assert ended.heard[seq_id].tokens == plain.heard[limited].tokens


def test_who_waits_already_ends_at_once_when_no_more_is_paid() -> None:
    bench = Workbench(some_limits())
    seq_id = bench.add(a_spec(held_tokens=2, max_new_tokens=9))
    for _ in range(3):
        bench.step()
    steps = bench.scheduler.steps
    bench.allow(seq_id, 2, is_final=True)

    last = bench.heard[seq_id].last
    assert last is not None
    assert last.usage is not None
    assert (last.finish_reason, last.tokens) == (FinishReason.LENGTH, ())
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 2)
    assert bench.scheduler.steps == steps
    assert not bench.scheduler.has_work


def test_a_last_payment_of_less_than_was_paid_ends_at_what_was_paid() -> None:
    bench = Workbench(some_limits())
    seq_id = bench.add(a_spec(held_tokens=5, max_new_tokens=9))
    bench.step()
    bench.allow(seq_id, 2, is_final=True)
    bench.run_to_the_end()

    assert len(bench.heard[seq_id].tokens) == 5


def test_a_stop_before_the_ceiling_is_a_stop() -> None:
    bench = Workbench(some_limits())
    *before, end = fake_answer((1, 2, 3), 3, VOCAB)
    assert end not in before
    seq_id = bench.add(a_spec(held_tokens=3, max_new_tokens=9, stop_token_ids=frozenset([end])))
    bench.run_to_the_end()

    last = bench.heard[seq_id].last
    assert last is not None
    assert last.finish_reason is FinishReason.STOP


def test_what_was_preempted_while_it_waited_takes_no_room_before_it_is_paid_for() -> None:
    bench = Workbench(some_limits())
    seq_id = bench.add(a_spec(held_tokens=2, max_new_tokens=9))
    for _ in range(3):
        bench.step()
    bench.scheduler.preempt([seq_id])
    assert bench.step() == []
    assert bench.scheduler.books.free == bench.scheduler.books.total

    bench.allow(seq_id, 9)
    bench.run_to_the_end()
    assert len(bench.heard[seq_id].tokens) == 9


def test_others_pass_one_that_waits_in_the_queue_for_its_payment() -> None:
    bench = Workbench(some_limits(max_batch_size=1))
    first = bench.add(a_spec(held_tokens=2, max_new_tokens=9))
    for _ in range(3):
        bench.step()
    bench.scheduler.preempt([first])
    second = bench.add(a_spec((7,), arrival_ns=5, max_new_tokens=3))
    for _ in range(4):
        bench.step()

    assert bench.heard[second].last is not None
    assert bench.heard[first].last is None


def test_who_waits_is_preempted_like_others() -> None:
    bench = Workbench(some_limits(kv_blocks=5))
    first = bench.add(a_spec(range(6), max_new_tokens=12))
    waits = bench.add(a_spec((7, 8, 9), arrival_ns=1, held_tokens=1, max_new_tokens=9))
    for _ in range(12):
        bench.step()

    assert bench.scheduler.preemptions == 1
    assert bench.heard[first].last is not None
    bench.allow(waits, 9)
    bench.run_to_the_end()


def test_a_ceiling_moves_along() -> None:
    bench = Workbench(some_limits())
    waits = bench.add(a_spec(held_tokens=2, max_new_tokens=9))
    ends = bench.add(a_spec((7, 8), held_tokens=2, max_new_tokens=9))
    bench.step()
    bench.allow(ends, 4, is_final=True)
    bench.move(some_limits())
    for _ in range(6):
        bench.step()

    assert len(bench.heard[waits].tokens) == 2
    assert len(bench.heard[ends].tokens) == 4
    last = bench.heard[ends].last
    assert last is not None
    assert last.finish_reason is FinishReason.LENGTH


def test_guesses_are_not_asked_for_beyond_what_is_paid() -> None:
    bench = Workbench(some_limits())
    seq_id = bench.add(a_spec(held_tokens=4, max_new_tokens=20))
    bench.step()

    [ask] = bench.scheduler.draft_asks(5)
    assert ask.most == 2, "one token comes without a guess"
    words = fake_answer((1, 2, 3), 6, VOCAB)
    bench.scheduler.set_drafts({seq_id: words[1:6]})
    [row] = bench.step()
    assert row.drafts == 2
    assert bench.heard[seq_id].tokens == words[:4]
    assert bench.scheduler.draft_asks(5) == []


def test_prompts_are_not_slowed_for_those_who_wait() -> None:
    bench = Workbench(some_limits(max_tokens_per_batch=64, target_itl_ms=0.001))
    bench.add(a_spec(held_tokens=1, max_new_tokens=9))
    for _ in range(12):
        bench.add(a_spec((9, 9), max_new_tokens=2))
        bench.step(10**7)
        bench.step(10**7)
    bench.add(a_spec([n % VOCAB for n in range(60)], max_new_tokens=1))

    [row] = bench.step()
    assert len(row.tokens) == 60


def test_who_only_wants_its_prompt_scored_needs_no_payment() -> None:
    sampling = Sampling(temperature=0.0, prompt_logprobs=1)
    bench = Workbench(some_limits())
    bench.scheduler.add(
        1, structs.replace(a_spec(), max_new_tokens=0, held_tokens=1, sampling=sampling), _Silent()
    )
    rows = bench.scheduler.plan()

    assert [len(row.tokens) for row in rows] == [3]


class _Silent:
    is_armed = True
    is_stopped = False

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""
