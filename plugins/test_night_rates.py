from datetime import UTC, datetime

import pytest

import night_rates
from llmhost import Price
from llmhost.hooks.call import ask
from llmhost.hooks.registry import Plugins

LIST = Price.of(input="0.10", cached_input="0.01", output="0.40")


async def quote(hour: int) -> Price | None:
    now = datetime(2026, 1, 10, hour, 59, tzinfo=UTC)
    plugins = Plugins.of(night_rates)
    answer = await ask(plugins, "quote_price", request=None, caller=None, price=LIST, now=now)
    return None if answer is None else answer.opinion


@pytest.mark.parametrize("hour", [0, 5])
async def test_nights_are_half_price(hour: int) -> None:
    assert await quote(hour) == Price.of(input="0.05", cached_input="0.005", output="0.20")


@pytest.mark.parametrize("hour", [6, 23])
async def test_days_are_as_listed(hour: int) -> None:
    assert await quote(hour) is None
