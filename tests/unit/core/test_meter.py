"""A meter never loses or makes money: what it has said and what it keeps are the exact amount."""

from hypothesis import given
from hypothesis import strategies as st

from llmhost.core.meter import HOUR_NS, Meter, Rate

rates = st.builds(Rate, st.integers(0, 10**13), st.integers(1, HOUR_NS * 1000))


@given(rates, st.lists(st.integers(0, 10**12)))
def test_pieces_of_time_cost_together_what_the_whole_costs(rate: Rate, pieces: list[int]) -> None:
    meter = Meter(rate)
    said = sum(meter.take(units) for units in pieces)

    assert said == meter.nano == rate.whole(sum(pieces))
    assert meter.error_nano == 0
    assert 0 <= meter.rest < rate.per


def test_an_hour_costs_the_hourly_rate_however_it_is_cut() -> None:
    meter = Meter(Rate(2_500_000_000, HOUR_NS))
    for _ in range(3_600 * 7):
        meter.take(10**9 // 7)
    meter.take(HOUR_NS - meter.units)

    assert meter.nano == 2_500_000_000
