from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.cost.pricing import Rates
from llmhost.cost.shares import Share, share_in

WHOLE = Rates(input_nano=10, cached_input_nano=3, output_nano=21, request_nano=8)


def test_a_part_of_a_price_is_a_part_of_each_rate_with_the_fee_beside() -> None:
    assert Share("tiny/1", Fraction(1, 2), fee_nano=5).rates(WHOLE) == Rates(
        input_nano=5, cached_input_nano=2, output_nano=10, request_nano=9
    )


@given(
    st.sampled_from(["tiny/1", "tiny+night_rates/12", "a.b-c+batch/3"]),
    st.fractions(0, 100),
    st.integers(0, 10**12),
)
def test_a_note_says_all_of_it(version: str, factor: Fraction, fee_nano: int) -> None:
    share = Share(version, factor, fee_nano)
    assert share_in(share.note) == share


@pytest.mark.parametrize("note", [None, "", "contract 2026", "1/2", "half of tiny/1", "1/2 of a b"])
def test_a_note_of_somebody_else_is_no_share(note: str | None) -> None:
    assert share_in(note) is None
