"""The public test kit does what its own documentation says."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from llmhost.config.schema import Settings
from llmhost.config.schema.models import ModelSpec
from llmhost.core.errors import ConfigError
from llmhost.hooks.spec import Price, hookimpl
from llmhost.testing import at, fake_chat_words, fake_words, make_host


class NightRates:
    """Half price before six."""

    @hookimpl
    def quote_price(self, price: Price, now: datetime) -> Price | None:
        return price.times(1, 2) if now.hour < 6 else None


async def test_the_example_in_the_kits_own_words_is_true() -> None:
    async with make_host(plugins=[NightRates()], clock=at("2026-01-10T03:00Z")) as host:
        answer = await host.chat("hello", max_tokens=8)
        [entry] = host.entries()

    assert answer.status_code == 200
    # "user: hello" and "assistant:" are three words at 50 nano-dollars, and eight come back at 200
    assert entry["amount_nano"] == 3 * 50 + 8 * 200


async def test_the_fakes_words_are_known_beforehand() -> None:
    async with make_host() as host:
        said = await host.say("hello", max_tokens=6)
        answer = await host.client.post(
            "/v1/completions", json={"model": "fake", "prompt": "hello", "max_tokens": 6}
        )

    assert said == fake_chat_words([{"role": "user", "content": "hello"}], 6)
    assert answer.json()["choices"][0]["text"] == fake_words("hello", 6)


async def test_say_raises_where_chat_returns() -> None:
    async with make_host() as host:
        assert (await host.chat("hello", model="nobody")).status_code == 404
        with pytest.raises(httpx.HTTPStatusError):
            await host.say("hello", model="nobody")


async def test_once_a_key_exists_every_request_needs_one() -> None:
    async with make_host() as host:
        assert (await host.chat("hello", max_tokens=1)).status_code == 200
        key = await host.make_key("acme", team="blue")
        assert (await host.chat("hello", max_tokens=1)).status_code == 401
        host.client.headers["authorization"] = f"Bearer {key}"
        assert (await host.chat("hello", max_tokens=1)).status_code == 200
        entry = host.entries()[-1]

    assert (entry["org"], entry["team"]) == ("acme", "blue")


async def test_a_data_dir_that_is_given_keeps_what_happened(tmp_path: Path) -> None:
    for count in (1, 2):
        async with make_host(data_dir=tmp_path) as host:
            await host.say("hello", max_tokens=1)
            assert len(host.entries()) == count


async def test_two_nodes_can_run_side_by_side() -> None:
    async with make_host() as one, make_host() as other:
        await asyncio.gather(one.say("a", max_tokens=2), other.say("b", max_tokens=2))
        assert [len(one.entries()), len(other.entries())] == [1, 1]


async def test_settings_bring_everything_but_the_models() -> None:
    settings = Settings(models={"ignored": ModelSpec(engine="fake")})
    async with make_host(settings=settings, models={"mine": ModelSpec(engine="fake")}) as host:
        listed = (await host.client.get("/v1/models")).json()["data"]

    assert [model["id"] for model in listed] == ["mine"]


async def test_a_node_that_cannot_be_built_leaves_nothing_behind(tmp_path: Path) -> None:
    for _ in range(2):  # the second would find the lock of the first
        with pytest.raises(ConfigError, match="engine 'none' is unknown"):
            async with make_host(models={"m": ModelSpec(engine="none")}, data_dir=tmp_path):
                pass


def test_a_clock_stands_where_it_was_put_until_it_is_moved() -> None:
    clock = at("2026-01-10T03:00")
    before = clock.monotonic_ns()
    clock.advance(90)

    assert clock.utc_now() == datetime(2026, 1, 10, 3, 1, 30, tzinfo=UTC)
    assert clock.monotonic_ns() - before == 90 * 10**9
    assert at("2026-01-10T05:00+02:00").utc_ns() == at("2026-01-10T03:00Z").utc_ns()
