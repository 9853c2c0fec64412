"""Precision of rules, and the thresholds that are proposed."""

from hypothesis import given
from hypothesis import strategies as st

from llmhost.safety.labels import (
    Agreement,
    Label,
    agreement_of,
    proposals,
    rule_qualities,
    wilson_low,
)

shares = st.tuples(st.floats(0, 1), st.booleans())


def label(score: float, is_right: bool, **facts: str) -> Label:
    usual = {"category": "violence", "rule": "guard:g", "tier": "guard", **facts}
    return Label(score=score, is_right=is_right, **usual)


def test_a_rules_precision_is_the_share_of_what_reviewers_rejected():
    found = rule_qualities(
        [label(1.0, True, rule="a")] * 3
        + [label(1.0, False, rule="a")]
        + [label(1.0, True, rule="b")]
    )

    assert [(one.rule, one.right, one.wrong, one.precision) for one in found] == [
        ("a", 3, 1, 0.75),
        ("b", 1, 0, 1.0),
    ]
    assert 0 < found[1].low < found[0].low < 0.75


def test_the_lowest_threshold_is_proposed_that_is_precise_enough():
    labels = [label(0.9, True)] * 18 + [label(0.8, False)] * 2 + [label(0.7, True)] * 5
    labels += [label(0.5, False)] * 10

    (found,) = proposals(labels)

    assert (found.threshold, found.labels, found.kept, found.right) == (0.7, 35, 23, 23)
    assert found.precision == 23 / 25


def test_nothing_is_proposed_of_few_decisions_of_none_that_suit_or_of_rules_that_are_sure():
    assert proposals([label(0.9, True)] * 19)[0].threshold is None
    assert proposals([label(0.9, False)] * 40)[0].threshold is None
    assert proposals([label(1.0, True, tier="rules")] * 40) == []


@given(st.lists(shares, min_size=20, max_size=60))
def test_a_proposed_threshold_has_the_precision_that_it_says(found: list[tuple[float, bool]]):
    labels = [label(score, is_right) for score, is_right in found]
    (proposal,) = proposals(labels)

    if proposal.threshold is not None:
        above = [one for one in labels if one.score >= proposal.threshold]
        right = sum(one.is_right for one in above)
        assert proposal.precision == right / len(above) >= 0.9
        assert proposal.kept == right


@given(st.integers(1, 10_000), st.integers(0, 10_000))
def test_the_lower_end_is_below_the_share(count: int, right: int):
    right = min(right, count)
    assert 0 <= wilson_low(right, count) <= right / count + 1e-12
    assert wilson_low(0, 0) == 0


def test_agreement_counts_the_first_two_votes_and_what_chance_would_do():
    assert agreement_of([(True,), ()]) == Agreement(0, 0, None)
    assert agreement_of([(True, True)] * 3) == Agreement(3, 3, None)
    whole = agreement_of([(True, True), (False, False)])
    assert (whole.agreed, whole.kappa) == (2, 1.0)
    none = agreement_of([(True, False), (False, True, True)])
    assert (none.texts, none.agreed, none.kappa) == (2, 0, -1.0)
    half = agreement_of([(True, True), (False, False), (True, False), (False, True)])
    assert half.kappa == 0
