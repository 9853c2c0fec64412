"""Many steps are split in one go as they would be one by one."""

from hypothesis import given
from hypothesis import strategies as st

from llmhost.core.step import split_exactly
from llmhost.schedule import shares as module
from llmhost.schedule.shares import TimeOfStep, shares_of

amounts = st.one_of(st.integers(0, 50), st.integers(0, 10**8), st.integers(0, 10**13))


@given(
    st.lists(st.integers(1, 200_000), min_size=1, max_size=12),
    st.lists(st.tuples(amounts, amounts), min_size=1, max_size=8),
)
def test_the_outcome_is_that_of_each_step_added_up(
    units: list[int], times: list[tuple[int, int]]
) -> None:
    steps = [TimeOfStep(number, *time) for number, time in enumerate(times)]
    ns, nano = [0] * len(units), [0] * len(units)
    for number, *time in steps:
        shares = split_exactly(time[0], [each + number for each in units])
        ns = [a + b for a, b in zip(ns, shares, strict=True)]
        nano = [a + b for a, b in zip(nano, split_exactly(time[1], shares), strict=True)]
    before, module.WORTHWHILE = module.WORTHWHILE, 1
    try:
        together = shares_of(units, steps)
    finally:
        module.WORTHWHILE = before
    assert together == (ns, nano)
    assert shares_of(units, steps) == (ns, nano)
