"""The admin routes of budgets and credits, on a node whose clock stands still."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmhost.core.caller import Caller, Role
from llmhost.testing import ManualClock, TestHost, at, make_host

NOW_S = 1_767_225_600
USD = 10**9


@dataclass
class Office:
    host: TestHost
    clock: ManualClock

    async def ask(
        self, method: str, path: str, *, bearer: str | None = None, **given: Any
    ) -> httpx.Response:
        headers = {"authorization": f"Bearer {bearer or self.host.host.admin_token}"}
        return await self.host.client.request(method, f"/admin/v1{path}", headers=headers, **given)

    async def done(self, method: str, path: str, status: int = 200, **given: Any) -> Any:
        answer = await self.ask(method, path, **given)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def make(self, status: int = 201, **body: Any) -> Any:
        return await self.done("POST", "/budgets", status, json={"org": "acme", **body})

    async def pay(self, status: int = 201, org: str = "acme", **body: Any) -> Any:
        self.clock.advance(1)
        return await self.done("POST", f"/orgs/{org}/credits", status, json={"usd": "1", **body})

    def spend(self, nano: int, run_id: str | None = None, **caller: Any) -> None:
        who = Caller(**{"key_id": None, "org": "acme", **caller})
        accounts = self.host.host.books.budgets.accounts
        hold = accounts.hold(who, run_id, nano, self.clock.utc_ns())
        assert hold is not None
        hold.settle(nano)


@pytest.fixture
async def office() -> AsyncIterator[Office]:
    clock = at("2026-01-01T00:00Z")
    async with make_host(clock=clock) as host:
        await host.host.books.keys.create_org("acme")
        await host.host.books.keys.create_org("zoo")
        yield Office(host, clock)


async def test_a_budget_is_shown_as_it_stands(office: Office) -> None:
    made = await office.make(usd="12.5", period="month", timezone="Europe/Berlin")
    office.spend(3 * USD)

    shown = await office.done("GET", f"/budgets/{made['id']}")

    assert shown == {
        "id": made["id"],
        "level": "org",
        "org": "acme",
        "team": None,
        "key": None,
        "per_run": False,
        "period": "month",
        "timezone": "Europe/Berlin",
        "usd": "12.50",
        "spent_usd": "3.00",
        "held_usd": "0.00",
        "remaining_usd": "9.50",
        "resets_at": 1769900400,
        "until": None,
        "state": "active",
        "created_at": NOW_S,
        "ended_at": None,
        "made_by": "operator",
        "runs": [],
        "holds": [],
        "history": [
            {"at": NOW_S, "what": "created", "by": "operator", "usd": "12.50", "until": None}
        ],
    }
    assert made["spent_usd"] == "0.00"


async def test_a_budget_is_changed_and_ended(office: Office) -> None:
    made = await office.make(usd="5")
    changed = await office.done(
        "PATCH", f"/budgets/{made['id']}", json={"usd": "7", "until": NOW_S + 60}
    )
    assert (changed["usd"], changed["until"]) == ("7.00", NOW_S + 60)
    again = await office.done("PATCH", f"/budgets/{made['id']}", json={"until": None})
    assert (again["usd"], again["until"]) == ("7.00", None)

    ended = await office.done("DELETE", f"/budgets/{made['id']}")

    assert (ended["state"], ended["spent_usd"]) == ("ended", None)
    assert await office.done("DELETE", f"/budgets/{made['id']}") == ended
    refused = await office.done("PATCH", f"/budgets/{made['id']}", 409, json={"usd": "9"})
    assert "has ended" in refused["error"]["message"]
    shown = await office.done("GET", f"/budgets/{made['id']}")
    assert [one["what"] for one in shown["history"]] == ["created", "changed", "changed", "ended"]


async def test_requests_that_hold_something_of_it_are_shown(office: Office) -> None:
    made = await office.make(usd="5")
    await office.make(usd="9", period="day", org="zoo")
    accounts = office.host.host.books.budgets.accounts
    caller = Caller(key_id="k1", org="acme", team="red")
    for name, nano in (("req_1", USD), ("req_2", 2 * USD)):
        accounts.hold(caller, "r", nano, office.clock.utc_ns(), request_id=name)
    accounts.hold(Caller(key_id="k2", org="zoo"), None, USD, office.clock.utc_ns())

    shown = await office.done("GET", f"/budgets/{made['id']}")

    assert [(one["request_id"], one["held_usd"]) for one in shown["holds"]] == [
        ("req_2", "2.00"),
        ("req_1", "1.00"),
    ]
    assert shown["holds"][0] | {"request_id": "", "held_usd": ""} == {
        **{"request_id": "", "key": "k1", "team": "red", "run": "r"},
        **{"held_usd": "", "since": NOW_S},
    }
    assert (shown["held_usd"], shown["remaining_usd"]) == ("3.00", "2.00")


async def test_runs_are_shown_with_what_they_used(office: Office) -> None:
    made = await office.make(usd="5", per_run=True)
    assert made["spent_usd"] is None
    for run, nano in (("small", USD), ("large", 4 * USD)):
        office.spend(nano, run, key_id="k1")

    shown = await office.done("GET", f"/budgets/{made['id']}")

    assert [
        (one["run"], one["key"], one["spent_usd"], one["remaining_usd"]) for one in shown["runs"]
    ] == [
        ("large", "k1", "4.00", "1.00"),
        ("small", "k1", "1.00", "4.00"),
    ]


async def test_lists_are_filtered_and_come_in_pages(office: Office) -> None:
    record, _ = await office.host.host.books.keys.create(org="acme", team="red")
    made = [
        await office.make(usd="1"),
        await office.make(usd="1", team="red"),
        await office.make(usd="1", key=record.id[:6]),
        await office.make(org="zoo", usd="1"),
    ]
    await office.done("DELETE", f"/budgets/{made[0]['id']}")

    async def ids(**query: str) -> list[int]:
        page = await office.done("GET", "/budgets", params=query)
        return [[one["id"] for one in made].index(row["id"]) for row in page["data"]]

    assert await ids() == [0, 1, 2, 3]
    assert await ids(org="acme") == [0, 1, 2]
    assert await ids(team="red") == [1]
    assert await ids(key=record.id) == [2]
    assert await ids(active="true") == [1, 2, 3]
    assert await ids(active="false") == [0]
    first = await office.done("GET", "/budgets", params={"limit": "3"})
    assert (first["has_more"], first["last_id"]) == (True, made[2]["id"])
    assert await ids(after=first["last_id"]) == [3]
    await office.done("GET", "/budgets", 404, params={"org": "nobody"})


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "usd"),
        ({"usd": "-1"}, 400, "usd"),
        ({"usd": "1e9"}, 400, "usd"),
        ({"usd": "0.0000000001"}, 400, "usd"),
        ({"usd": "99999999999"}, 400, "usd"),
        ({"usd": "1", "org": None}, 400, "org"),
        ({"usd": "1", "org": "nobody"}, 404, "org"),
        ({"usd": "1", "team": "nobody"}, 404, "team"),
        ({"usd": "1", "key": "nobody"}, 404, None),
        ({"usd": "1", "key": "k", "team": "t"}, 400, "team"),
        ({"usd": "1", "timezone": "Mars"}, 400, "timezone"),
        ({"usd": "1", "timezone": "../../etc/passwd"}, 400, "timezone"),
        ({"usd": "1", "period": "day", "until": NOW_S + 5}, 400, "until"),
        ({"usd": "1", "until": NOW_S}, 400, "until"),
        ({"usd": "1", "until": 10**30}, 400, "until"),
        ({"usd": "1", "period": "balance"}, 400, "usd"),
        ({"period": "balance", "per_run": True}, 400, "period"),
        ({"usd": 1}, 400, "usd"),
        ({"usd": "1", "period": "week"}, 400, "period"),
        ({"usd": "1", "limit": "1"}, 400, "limit"),
    ],
)
async def test_a_budget_that_makes_no_sense_is_refused_by_its_name(
    office: Office, body: dict[str, Any], status: int, param: str | None
) -> None:
    error = (await office.make(status, **body))["error"]

    assert error["param"] == param
    assert (await office.done("GET", "/budgets"))["data"] == []


async def test_a_second_budget_of_a_kind_is_refused(office: Office) -> None:
    await office.make(usd="1")

    assert "There is such a budget already" in (await office.make(409, usd="2"))["error"]["message"]


async def test_an_update_says_something(office: Office) -> None:
    made = await office.make(usd="1")

    await office.done("PATCH", f"/budgets/{made['id']}", 400, json={})
    await office.done("PATCH", "/budgets/nothing", 404, json={"usd": "1"})


# -- credits


async def test_a_balance_is_paid_into_and_credits_say_what_is_left(office: Office) -> None:
    made = await office.make(period="balance")
    paid = await office.pay(usd="10", reference="inv-1", note="first")
    await office.pay(usd="5", kind="grant", expires_at=NOW_S + 3600)
    office.clock.advance(1)
    office.spend(6 * USD)

    (balance,) = (await office.done("GET", "/budgets"))["data"]
    listed = (await office.done("GET", "/orgs/acme/credits"))["data"]

    assert (balance["usd"], balance["spent_usd"], balance["remaining_usd"]) == (
        *("15.00", "6.00", "9.00"),
    )
    assert paid == {
        "id": paid["id"],
        "budget": made["id"],
        "org": "acme",
        "kind": "payment",
        "usd": "10.00",
        "left_usd": "10.00",
        "reference": "inv-1",
        "note": "first",
        "created_at": NOW_S + 1,
        "expires_at": None,
    }
    assert [(one["kind"], one["usd"], one["left_usd"]) for one in listed] == [
        ("payment", "10.00", "9.00"),
        ("grant", "5.00", "0.00"),
    ]
    shown = await office.done("GET", f"/budgets/{made['id']}")
    assert (shown["remaining_usd"], shown["runs"], shown["resets_at"]) == ("9.00", [], None)
    entries = office.host.entries()
    assert [(e["kind"], e["amount_nano"], e["credit"]) for e in entries] == [
        ("credit", 10 * USD, "org:acme"),
        ("credit", 5 * USD, "org:acme"),
    ]


async def test_a_payment_that_is_sent_again_is_booked_once(office: Office) -> None:
    await office.make(period="balance")
    first = await office.pay(usd="10", reference="inv-1")

    assert await office.pay(usd="10", reference="inv-1") == first
    error = (await office.pay(409, usd="11", reference="inv-1"))["error"]
    assert "inv-1" in error["message"]
    assert len(office.host.entries()) == 1


async def test_a_team_can_have_a_balance_of_its_own(office: Office) -> None:
    await office.host.host.books.keys.create(org="acme", team="red")
    made = await office.make(team="red", period="balance")
    await office.pay(404, usd="1")

    credit = await office.pay(usd="1", budget=made["id"])

    assert credit["budget"] == made["id"]
    await office.pay(404, org="zoo", usd="1", budget=made["id"])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"usd": "-1"}, "usd"),
        ({"usd": "x"}, "usd"),
        ({"expires_at": NOW_S}, "expires_at"),
        ({"expires_at": 10**30}, "expires_at"),
        ({"reference": "x" * 201}, "reference"),
        ({"note": "\x00"}, "note"),
        ({"kind": "gift"}, "kind"),
    ],
)
async def test_a_credit_that_makes_no_sense_is_refused_by_its_name(
    office: Office, body: dict[str, Any], param: str | None
) -> None:
    await office.make(period="balance")

    assert (await office.pay(400, **body))["error"]["param"] == param
    assert office.host.entries() == []


# -- budgets that are made with what they are for


async def test_a_key_can_be_made_with_a_budget(office: Office) -> None:
    key = await office.done(
        "POST",
        "/keys",
        201,
        json={"org": "acme", "budget_usd": "0.5", "budget_period": "day"},
    )
    (budget,) = (await office.done("GET", "/budgets"))["data"]

    assert (budget["key"], budget["usd"], budget["period"]) == (key["id"], "0.50", "day")


async def test_organisations_and_teams_can_be_made_with_a_budget(office: Office) -> None:
    await office.done("POST", "/orgs", 201, json={"name": "new", "budget_usd": "3"})
    await office.done("POST", "/teams", 201, json={"org": "new", "name": "t", "budget_usd": "2"})

    rows = (await office.done("GET", "/budgets"))["data"]

    assert [(row["level"], row["org"], row["team"], row["usd"], row["period"]) for row in rows] == [
        ("org", "new", None, "3.00", "total"),
        ("team", "new", "t", "2.00", "total"),
    ]


@pytest.mark.parametrize(
    "more", [{"budget_usd": "-1"}, {"budget_usd": "1", "budget_period": "balance"}]
)
async def test_nothing_is_made_with_a_budget_that_makes_no_sense(
    office: Office, more: dict[str, Any]
) -> None:
    for path, body in (
        ("/orgs", {"name": "new"}),
        ("/teams", {"org": "acme", "name": "new"}),
        ("/keys", {"org": "acme"}),
    ):
        await office.done("POST", path, 400, json={**body, **more})

    assert (await office.done("GET", "/keys"))["data"] == []
    assert (await office.done("GET", "/teams"))["data"] == []
    await office.done("GET", "/orgs/new", 404)


# -- who may


async def keys_of(office: Office, org: str) -> dict[str, str]:
    return {role.value: await office.host.make_key(org, role=role) for role in Role}


async def test_roles_see_their_organisations_budgets(office: Office) -> None:
    keys = await keys_of(office, "acme")
    mine = await office.make(usd="1")
    theirs = await office.make(org="zoo", usd="1")

    for role, status in (("admin", 200), ("billing", 200), ("member", 403), ("inference", 403)):
        for path in ("/budgets", f"/budgets/{mine['id']}", "/orgs/acme/credits"):
            answer = await office.done("GET", path, status, bearer=keys[role])
        if status == 200:
            seen = await office.done("GET", "/budgets", bearer=keys[role])
            assert [row["id"] for row in seen["data"]] == [mine["id"]]
            await office.done("GET", f"/budgets/{theirs['id']}", 404, bearer=keys[role])
            await office.done("GET", "/orgs/zoo/credits", 404, bearer=keys[role])
            await office.done("GET", "/budgets", 404, bearer=keys[role], params={"org": "zoo"})
    assert answer["error"]["code"] == "permission_denied"


async def test_an_organisations_admin_limits_its_keys_and_not_itself(office: Office) -> None:
    keys = await keys_of(office, "acme")
    record, _ = await office.host.host.books.keys.create(org="acme")
    stranger, _ = await office.host.host.books.keys.create(org="zoo")
    admin = keys["admin"]

    made = await office.done(
        "POST", "/budgets", 201, bearer=admin, json={"key": record.id, "usd": "1"}
    )
    assert made["made_by"] == admin.split("-")[2]
    await office.done("POST", "/budgets", 403, bearer=admin, json={"org": "acme", "usd": "1"})
    await office.done("POST", "/budgets", 404, bearer=admin, json={"key": stranger.id, "usd": "1"})
    await office.done("POST", "/budgets", 404, bearer=admin, json={"org": "zoo", "usd": "1"})
    await office.done(
        "POST", "/budgets", 403, bearer=keys["billing"], json={"key": record.id, "usd": "1"}
    )
    await office.done("PATCH", f"/budgets/{made['id']}", bearer=admin, json={"usd": "2"})
    await office.done("POST", "/orgs/acme/credits", 403, bearer=admin, json={"usd": "1"})


async def test_an_organisations_admin_can_not_lift_what_the_operator_said(office: Office) -> None:
    admin = (await keys_of(office, "acme"))["admin"]
    record, _ = await office.host.host.books.keys.create(org="acme")
    made = await office.done("POST", "/budgets", 201, json={"key": record.id, "usd": "1"})

    for method, body in (("PATCH", {"usd": "9"}), ("DELETE", None)):
        answer = await office.done(method, f"/budgets/{made['id']}", 403, bearer=admin, json=body)
        assert "operator" in answer["error"]["message"]


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    usd=st.text(max_size=20) | st.from_regex(r"-?[0-9]{1,25}(\.[0-9]{1,12})?", fullmatch=True),
    period=st.sampled_from(["day", "month", "total"]),
    timezone=st.text(max_size=20) | st.sampled_from(["UTC", "Asia/Tokyo"]),
)
async def test_whatever_is_sent_is_made_or_refused(
    office: Office, usd: str, period: str, timezone: str
) -> None:
    body = {"org": "acme", "usd": usd, "period": period, "timezone": timezone}
    answer = await office.ask("POST", "/budgets", json=body)

    assert answer.status_code in (201, 400, 409), answer.text
    if answer.status_code == 201:
        await office.done("DELETE", f"/budgets/{answer.json()['id']}")
