"""What may become of a review: by every reviewer, in every order, at any time."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.safety.reviews import ANN, BOB, BOSS, EVE, SECOND, review

from llmhost.core.errors import Conflict, Forbidden
from llmhost.safety.review import (
    OPERATOR,
    Review,
    Reviewer,
    ReviewState,
    as_of,
    claim,
    decide,
    escalate,
    expire,
    may_take,
    release,
)

LEASE = 10 * SECOND
SELF = Reviewer("sender", org="acme")


def claimed(by: Reviewer = ANN, **facts: object) -> Review:
    return claim(review(**facts), by, 0, LEASE)


def test_a_claim_keeps_others_away_until_it_lapses():
    held = claimed()

    assert (held.state, held.holder) == (ReviewState.CLAIMED, "ann")
    for act in (
        lambda now: claim(held, BOB, now, LEASE),
        lambda now: decide(held, BOB, now, approves=True),
        lambda now: escalate(held, BOB, now),
    ):
        with pytest.raises(Conflict, match="claimed by ann"):
            act(LEASE - 1)
        assert act(LEASE).version == held.version + 1


def test_a_holder_may_claim_for_longer_decide_and_give_back():
    held = claimed()

    assert claim(held, ANN, SECOND, LEASE).held_until_ns == SECOND + LEASE
    assert decide(held, ANN, 1, approves=False).state is ReviewState.REJECTED
    given_back = release(held, ANN, 1)
    assert (given_back.state, given_back.holder) == (ReviewState.OPEN, None)


def test_only_the_holder_or_a_senior_ends_a_claim():
    held = claimed()

    with pytest.raises(Conflict, match="not by you"):
        release(held, BOB, 1)
    assert release(held, BOSS, 1).holder is None
    with pytest.raises(Conflict, match="Nobody has claimed"):
        release(review(), BOSS, 1)


def test_nobody_decides_on_what_their_own_key_sent():
    assert not may_take(review(), SELF, 0)
    for act in (
        lambda: claim(review(), SELF, 0, LEASE),
        lambda: decide(review(), SELF, 0, approves=True),
        lambda: escalate(review(), SELF, 0),
    ):
        with pytest.raises(Forbidden, match="your own key"):
            act()


def test_with_four_eyes_two_different_reviewers_have_to_agree():
    once = decide(review(needs=2), ANN, 1, approves=True)

    assert once.state is ReviewState.OPEN
    assert not may_take(once, ANN, 2)
    with pytest.raises(Conflict, match="Somebody else"):
        decide(once, ANN, 2, approves=True)
    assert decide(once, BOB, 3, approves=True).state is ReviewState.APPROVED


def test_a_disagreement_escalates_and_a_senior_who_has_not_voted_decides_alone():
    split = decide(
        decide(review(needs=2), ANN, 1, approves=True), BOSS, 2, approves=False, note="no"
    )

    assert split.state is ReviewState.ESCALATED
    with pytest.raises(Forbidden, match="escalated"):
        decide(split, EVE, 3, approves=True)
    with pytest.raises(Conflict, match="You have voted"):
        decide(split, BOSS, 3, approves=True)
    assert claim(split, OPERATOR, 3, LEASE).state is ReviewState.ESCALATED
    assert decide(split, OPERATOR, 3, approves=True).state is ReviewState.APPROVED


def test_what_is_escalated_is_not_escalated_again():
    raised = escalate(claimed(), ANN, 1)

    assert (raised.state, raised.holder) == (ReviewState.ESCALATED, None)
    with pytest.raises(Conflict, match="already"):
        escalate(raised, BOSS, 2)


def test_what_nobody_decides_expires_and_is_over():
    late = review().ends_ns

    assert as_of(claimed(), late).state is ReviewState.EXPIRED
    assert expire(review(), late).state is ReviewState.EXPIRED
    with pytest.raises(Conflict, match="has not expired"):
        expire(review(), late - 1)
    with pytest.raises(Conflict, match="nothing is left"):
        decide(review(), ANN, late, approves=True)


def test_late_decisions_are_overdue_and_others_are_not():
    due = review().due_ns

    assert decide(review(), ANN, due + 1, approves=True).is_overdue
    assert not decide(review(), ANN, due, approves=True).is_overdue
    assert not review().is_overdue


ACTS: dict[str, Callable[[Review, Reviewer, int], Review]] = {
    "claim": lambda r, who, now: claim(r, who, now, LEASE),
    "release": release,
    "approve": lambda r, who, now: decide(r, who, now, approves=True),
    "reject": lambda r, who, now: decide(r, who, now, approves=False),
    "escalate": escalate,
    "expire": lambda r, who, now: expire(r, now),
}
steps = st.lists(
    st.tuples(
        st.sampled_from(sorted(ACTS)),
        st.sampled_from([ANN, BOB, BOSS, SELF, OPERATOR]),
        st.integers(0, 120 * SECOND),
    ),
    max_size=25,
)


@given(steps, st.integers(1, 2))
def test_whatever_is_tried_it_is_decided_once_by_those_who_may(
    tried: list[tuple[str, Reviewer, int]], needs: int
):
    now, it = 0, review(needs=needs)
    for name, who, wait in tried:
        now += wait
        before = as_of(it, now)
        try:
            after = ACTS[name](it, who, now)
        except (Conflict, Forbidden):
            continue
        assert not it.state.is_end, "what has ended stays as it is"
        assert after.version == it.version + 1
        assert before.holder in (None, who.name) or who.is_senior or name == "expire"
        if before.state is ReviewState.ESCALATED and name in ("approve", "reject"):
            assert who.is_senior
            assert after.state.is_end
        it = after
    voters = [vote.by for vote in it.votes]
    assert len(voters) == len(set(voters))
    assert SELF.name not in voters
    if it.state in (ReviewState.APPROVED, ReviewState.REJECTED):
        assert it.votes[-1].approves is (it.state is ReviewState.APPROVED)
        agree = sum(vote.approves is it.votes[-1].approves for vote in it.votes)
        assert agree >= needs or any(who in ("boss", "operator") for who in voters)
