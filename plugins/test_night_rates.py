import pytest

import night_rates
from llmhost import Price
from llmhost.testing import at, make_host


async def amount(now: str) -> int:
    """What eight words cost at a time of day, in nano-dollars."""
    async with make_host(plugins=[night_rates], clock=at(now)) as host:
        await host.say("hello", max_tokens=8)
        amount_nano: int = host.entries()[-1]["amount_nano"]
        return amount_nano


@pytest.mark.parametrize("hour", ["00:00", "03:00", "05:59"])
async def test_nights_are_half_price(hour: str) -> None:
    assert await amount(f"2026-01-10T{hour}") == await amount("2026-01-10T12:00") // 2


@pytest.mark.parametrize("hour", ["06:00", "23:59"])
async def test_days_are_as_listed(hour: str) -> None:
    assert await amount(f"2026-01-10T{hour}") == 3 * 100 + 8 * 400


def test_a_day_has_no_opinion_on_the_price() -> None:
    listed = Price.of(input="0.10", output="0.40")

    assert night_rates.quote_price(listed, at("2026-01-10T12:00").utc_now()) is None
