"""The admin routes of prices, on a node whose clock stands still."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.money import PriceSettings
from llmhost.core.caller import Role
from llmhost.testing import ManualClock, TestHost, at, make_host

MODELS = {
    "tiny": ModelSpec(
        engine="fake", aliases=("small",), price=PriceSettings(input="1", output="2")
    ),
    "bare": ModelSpec(engine="fake", adapters={}),
}
NOW_S = 1_767_225_600


@dataclass
class Office:
    host: TestHost
    clock: ManualClock

    async def ask(
        self, method: str, path: str = "", *, key: str | None = None, **given: Any
    ) -> httpx.Response:
        bearer = {"authorization": f"Bearer {key or self.host.host.admin_token}"}
        return await self.host.client.request(
            method, f"/admin/v1/prices{path}", headers=bearer, **given
        )

    async def set(self, status: int = 201, **body: Any) -> dict[str, Any]:
        answer = await self.ask("POST", json={"model": "tiny", **body})
        assert answer.status_code == status, answer.text
        row: dict[str, Any] = answer.json()
        return row

    async def refusal(self, status: int = 400, **body: Any) -> dict[str, Any]:
        error: dict[str, Any] = (await self.set(status, **body))["error"]
        return error

    async def listed(self, query: str = "", **asked: Any) -> list[str]:
        page = (await self.ask("GET", query, **asked)).json()
        return [row["version"] for row in page["data"]]

    async def charged(self, key: str | None = None) -> int:
        """What two words asked and four answered cost, in nano-dollars."""
        body = {"model": "tiny", "prompt": "hello world", "max_tokens": 4}
        bearer = {} if key is None else {"authorization": f"Bearer {key}"}
        answer = await self.host.client.post("/v1/completions", json=body, headers=bearer)
        assert answer.status_code == 200, answer.text
        amount: int = self.host.entries()[-1]["amount_nano"]
        return amount


@pytest.fixture
async def office() -> AsyncIterator[Office]:
    clock = at("2026-01-01T00:00Z")
    async with make_host(models=MODELS, clock=clock) as host:
        yield Office(host, clock)


async def test_the_files_price_is_the_first_version(office: Office) -> None:
    row = (await office.ask("GET", "/current", params={"model": "small"})).json()

    assert row == {
        "version": "tiny/1",
        "model": "tiny",
        "org": None,
        "input": "1.00",
        "cached_input": "1.00",
        "output": "2.00",
        "reasoning": None,
        "embedding": None,
        "request": "0.00",
        "withdrawn": False,
        "origin": "file",
        "note": None,
        "created_at": NOW_S,
        "effective_at": NOW_S,
        "in_force": True,
    }
    missing = await office.ask("GET", "/current", params={"model": "bare"})
    assert missing.status_code == 404


async def test_a_price_that_is_set_is_charged_from_the_next_request_on(office: Office) -> None:
    assert await office.charged() == 2 * 1000 + 4 * 2000
    row = await office.set(model="small", input="1.5", output="3", request="0.00001", note="more")

    assert (row["version"], row["model"], row["origin"], row["note"]) == (
        *("tiny/2", "tiny", "api", "more"),
    )
    assert await office.charged() == 2 * 1500 + 4 * 3000 + 10_000
    assert await office.listed("?in_force=true") == ["tiny/2"]
    assert await office.listed() == ["tiny/1", "tiny/2"]
    old = (await office.ask("GET", "/versions/tiny/1")).json()
    assert (old["input"], old["in_force"]) == ("1.00", False)


async def test_models_are_listed_with_the_price_that_holds(office: Office) -> None:
    await office.set(input="1.5", output="3")
    await office.host.make_key("acme")
    await office.set(org="acme", input="1", output="2")
    bearer = {"authorization": f"Bearer {office.host.host.admin_token}"}
    rows = (await office.host.client.get("/admin/v1/models", headers=bearer)).json()["data"]

    prices = {row["name"]: row["price"] for row in rows}
    assert prices["tiny"] == {
        "input": "1.50",
        "cached_input": "1.50",
        "output": "3.00",
        "reasoning": None,
        "embedding": None,
        "request": "0.00",
        "version": "tiny/2",
    }
    assert prices["bare"] is None


async def test_an_organisation_pays_its_own_price_until_that_is_withdrawn(office: Office) -> None:
    acme, zoo = await office.host.make_key("acme"), await office.host.make_key("zoo")
    await office.set(org="acme", input="0.5", output="1")

    assert [await office.charged(key) for key in (acme, zoo)] == [5000, 10_000]
    await office.set(org="acme", withdraw=True)
    assert await office.charged(acme) == 10_000
    assert (await office.ask("GET", "/current?model=tiny&org=acme")).json()["version"] == "tiny/1"


async def test_a_price_to_come_is_charged_when_it_has_come(office: Office) -> None:
    await office.set(input="3", output="3", effective_at=NOW_S + 60)
    assert await office.charged() == 10_000
    office.clock.advance(60)
    assert await office.charged() == 18_000


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "1"}, "output"),
        ({"output": "1"}, "input"),
        ({"withdraw": True, "input": "1"}, "withdraw"),
        ({"input": "-1", "output": "1"}, "input"),
        ({"input": "1", "output": "free"}, "output"),
        ({"input": "1e3", "output": "1"}, "input"),
        ({"input": "1", "output": "1", "cached_input": "0.0000000001"}, "cached_input"),
        ({"input": "1", "output": "1000001"}, "output"),
        ({"input": "1", "output": "1", "request": "999999999999"}, "request"),
        ({"input": "1", "output": "1", "effective_at": NOW_S - 1}, "effective_at"),
        ({"input": "1", "output": "1", "effective_at": 10**30}, "effective_at"),
        ({"input": "1", "output": "1", "note": "x" * 201}, "note"),
        ({"input": "1", "output": "1", "note": "a\x00b"}, "note"),
        ({"input": "1", "output": "1", "model": "a b"}, "model"),
    ],
)
async def test_a_price_that_makes_no_sense_is_refused_by_its_name(
    office: Office, body: dict[str, Any], param: str
) -> None:
    assert (await office.refusal(**body))["param"] == param
    assert await office.listed() == ["tiny/1"]


async def test_what_does_not_exist_has_no_price(office: Office) -> None:
    assert (await office.refusal(404, model="gone", input="1", output="1"))["param"] == "model"
    assert (await office.refusal(404, org="gone", input="1", output="1"))["param"] == "org"
    assert (await office.ask("GET", "/versions/tiny/7")).status_code == 404
    assert (await office.ask("GET", "?org=gone")).status_code == 404
    assert (await office.ask("GET", "?after=tiny/7")).status_code == 400


async def test_a_change_by_more_than_ten_times_has_to_be_confirmed(office: Office) -> None:
    dear = await office.refusal(409, input="10.1", output="2")
    assert "input from 1.00 to 10.10" in dear["message"]
    assert "output" not in dear["message"]
    assert "--yes" in dear["message"]
    assert "to 0.00" in (await office.refusal(409, input="1", output="0"))["message"]
    assert "it would have none" in (await office.refusal(409, withdraw=True))["message"]
    assert await office.listed() == ["tiny/1"]

    await office.set(input="10", output="0.2")
    await office.set(input="200", output="0", confirm=True)
    await office.set(model="bare", input="500", output="500")


async def test_an_organisations_first_price_is_compared_with_what_it_paid(office: Office) -> None:
    await office.host.make_key("acme")
    assert (
        "from 1.00 to 100.00"
        in (await office.refusal(409, org="acme", input="100", output="2"))["message"]
    )
    await office.set(org="acme", input="0.1", output="2")
    await office.set(input="0.01", output="2", confirm=True)
    await office.set(org="acme", withdraw=True)


async def test_keys_see_the_list_and_their_own_and_set_nothing(office: Office) -> None:
    mine = await office.host.make_key("acme", role=Role.BILLING)
    await office.host.make_key("zoo")
    await office.set(org="zoo", input="1", output="1", note="theirs")
    await office.set(org="acme", input="1", output="1", note="secret")

    assert await office.listed(key=mine) == ["tiny/1", "tiny/3"]
    assert await office.listed("?in_force=true", key=mine) == ["tiny/1", "tiny/3"]
    assert await office.listed("?org=acme", key=mine) == ["tiny/3"]
    own = (await office.ask("GET", "/current?model=tiny", key=mine)).json()
    assert (own["version"], own["note"]) == ("tiny/3", None)
    assert (await office.ask("GET", "/versions/tiny/2", key=mine)).status_code == 404
    assert (await office.ask("GET", "?org=zoo", key=mine)).status_code == 404
    body = {"model": "tiny", "input": "0", "output": "0"}
    assert (await office.ask("POST", key=mine, json=body)).status_code == 403


async def test_lists_come_in_pages(office: Office) -> None:
    for amount in "23456":
        await office.set(input=amount, output="2")
    page = (await office.ask("GET", "?limit=4")).json()
    rest = (await office.ask("GET", f"?limit=4&after={page['last_id']}")).json()

    assert [row["version"] for row in page["data"] + rest["data"]] == [
        f"tiny/{n}" for n in range(1, 7)
    ]
    assert (page["has_more"], rest["has_more"]) == (True, False)


NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=40),
    st.sampled_from(
        ["'; DROP TABLE prices; --", "\x00", "acme\u202e", "٣", "1" * 500, "NaN", "1_000", "-0"]
    ),
    st.lists(st.text(max_size=5), max_size=2),
)
FIELDS = (
    *("model", "org", "input", "output", "cached_input", "reasoning", "embedding", "request"),
    *("withdraw", "effective_at", "note", "confirm"),
)


@settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
@given(
    bodies=st.lists(
        st.dictionaries(st.sampled_from(FIELDS), NASTY, max_size=5), min_size=50, max_size=50
    ),
    words=st.lists(st.text(max_size=40), min_size=10, max_size=10),
)
async def test_no_hostile_price_is_our_mistake(
    bodies: list[dict[str, Any]], words: list[str]
) -> None:
    async with make_host(models=MODELS, clock=at("2026-01-01T00:00Z")) as host:
        office = Office(host, at("2026-01-01T00:00Z"))
        for body in bodies:
            wish = {"model": "tiny", "input": "1", "output": "1", **body}
            assert (await office.ask("POST", json=wish)).status_code < 500, wish
        for word in words:
            for name in ("model", "org", "after", "limit", "in_force"):
                assert (await office.ask("GET", params={name: word})).status_code < 500, word
            assert (await office.ask("GET", "/current", params={"model": word})).status_code < 500
