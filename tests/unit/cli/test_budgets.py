"""`llmhost budgets` and `llmhost credits`: what is asked of a node, and what is said."""

import json

import pytest

ROW = {"id": "bud_1", "level": "org", "org": "acme", "team": None, "key": None, "per_run": False}
ROW |= {"period": "month", "timezone": "UTC", "usd": "500.00", "spent_usd": "1.50"}
ROW |= {"held_usd": "0.00", "remaining_usd": "498.50", "resets_at": 1767225600, "until": None}
ROW |= {"state": "active", "created_at": 1767225600, "ended_at": None, "made_by": "operator"}
CREDIT = {"id": "cred_1", "budget": "bud_1", "org": "acme", "kind": "payment", "usd": "10.00"}
CREDIT |= {"left_usd": "7.00", "reference": "inv-1", "note": None, "created_at": 1767225600}
CREDIT |= {"expires_at": None}


def test_a_budget_is_made_as_it_was_asked_for(node, llmhost):
    node.answers["POST /admin/v1/budgets"] = ROW

    result = llmhost(
        *("budgets", "create", "--org", "acme", "--usd", "500", "--period", "month"),
        *("--timezone", "Europe/Berlin"),
    )

    assert node.asked[0]["body"] == {
        "org": "acme",
        "usd": "500",
        "period": "month",
        "timezone": "Europe/Berlin",
    }
    assert result.stdout == "Budget bud_1: $500.00 a month for acme\n"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"team": "red"}, "Budget bud_1: $500.00 a month for team acme/red\n"),
        ({"key": "3f9c", "period": "total"}, "Budget bud_1: $500.00 in all for key 3f9c\n"),
        ({"per_run": True, "period": "day"}, "Budget bud_1: $500.00 a day for each run of acme\n"),
        ({"period": "balance"}, "Budget bud_1: $500.00 paid in for acme\n"),
    ],
)
def test_whose_it_is_is_said(node, llmhost, more: dict[str, object], said: str):
    node.answers["POST /admin/v1/budgets"] = ROW | more

    result = llmhost(
        *("budgets", "create", "--key", "3f9c", "--per-run", "--usd", "1"),
        *("--until", "2026-12-01"),
    )

    assert node.asked[0]["body"] == {
        "key": "3f9c",
        "per_run": True,
        "usd": "1",
        "until": 1796083200,
    }
    assert result.stdout == said


def test_budgets_are_listed_as_they_stand(node, llmhost):
    node.answers["GET /admin/v1/budgets"] = {
        "data": [
            ROW,
            ROW | {"id": "bud_2", "per_run": True, "spent_usd": None, "remaining_usd": None},
        ]
    }

    lines = llmhost("budgets", "list", "--org", "acme").stdout.splitlines()

    assert node.asked[0]["query"] == {"org": "acme", "active": "true"}
    assert lines[1].split() == (
        [
            "bud_1",
            "acme",
            "$500.00",
            "a",
            "month",
            "$1.50",
            "$0.00",
            "$498.50",
            "2026-01-01",
            "00:00",
            "active",
        ]
    )
    assert "each run of acme" in lines[2]
    llmhost("budgets", "list", "--key", "3f9c", "--all")
    assert node.asked[1]["query"] == {"key": "3f9c"}


def test_a_budget_is_shown_with_its_runs_and_changes(node, llmhost):
    node.answers["GET /admin/v1/budgets/bud_1"] = ROW | {
        "runs": [{"run": "r1", "key": "3f9c", "spent_usd": "1.00", "remaining_usd": "2.00"}],
        "holds": [
            {
                **{"request_id": "req_1", "key": "3f9c", "team": None, "run": "r1"},
                **{"held_usd": "0.25", "since": 1767225600},
            }
        ],
        "history": [{"at": 1767225600, "what": "created", "by": "operator", "usd": "5.00"}],
    }

    text = llmhost("budgets", "show", "bud_1").stdout

    assert "remaining_usd  498.50" in text
    assert "resets_at      2026-01-01 00:00" in text
    assert "r1   3f9c  $1.00" in text
    assert "created  operator   $5.00" in text
    assert "req_1    3f9c  r1   $0.25" in text
    shown = json.loads(llmhost("budgets", "show", "bud_1", "--json").stdout)
    assert shown["runs"][0]["run"] == "r1"


def test_amount_and_end_are_changed(node, llmhost):
    node.answers["PATCH /admin/v1/budgets/bud_1"] = ROW | {"usd": "750.00"}

    result = llmhost("budgets", "update", "bud_1", "--usd", "750", "--until", "none")

    assert node.asked[0]["body"] == {"usd": "750", "until": None}
    assert result.stdout == "Budget bud_1 is $750.00 a month for acme now\n"


def test_a_budget_is_ended(node, llmhost):
    node.answers["DELETE /admin/v1/budgets/bud_1"] = ROW | {"state": "ended"}

    assert llmhost("budgets", "end", "bud_1").stdout == "Budget bud_1 for acme has ended\n"


def test_credits_are_paid_in_with_their_reference(node, llmhost):
    node.answers["POST /admin/v1/orgs/acme/credits"] = CREDIT | {"expires_at": 1798675200}

    result = llmhost(
        *("credits", "add", "acme", "--usd", "10", "--grant", "--expires", "2026-12-31"),
        *("--reference", "inv-1", "--note", "why", "--budget", "bud_1"),
    )

    assert node.asked[0]["body"] == {
        "usd": "10",
        "kind": "grant",
        "expires_at": 1798675200,
        "reference": "inv-1",
        "note": "why",
        "budget": "bud_1",
    }
    assert result.stdout == (
        "Credit cred_1 of $10.00 for acme, until 2026-12-31 00:00 UTC (inv-1)\n"
    )


def test_credits_are_listed_with_what_is_left(node, llmhost):
    node.answers["GET /admin/v1/orgs/acme/credits"] = {"data": [CREDIT]}

    lines = llmhost("credits", "list", "acme").stdout.splitlines()

    assert lines[1].split()[:5] == ["cred_1", "payment", "$10.00", "$7.00", "inv-1"]


@pytest.mark.parametrize(
    "args",
    [
        ("budgets", "create", "--usd", "1"),
        ("budgets", "create", "--org", "acme", "--usd", "1", "--period", "week"),
        ("budgets", "create", "--org", "acme", "--usd", "1", "--until", "soon"),
        ("budgets", "update", "bud_1"),
        ("budgets", "update", "bud_1", "--until", "9999999-01-01"),
        ("credits", "add", "acme"),
        ("credits", "add", "acme", "--usd", "1", "--expires", "soon"),
        ("keys", "create", "--org", "acme", "--budget-period", "day"),
        ("keys", "create", "--org", "acme", "--budget-usd", "1", "--budget-period", "balance"),
    ],
)
def test_wrong_usage_asks_nobody(node, llmhost, args: tuple[str, ...]):
    assert llmhost(*args).exit_code == 2
    assert node.asked == []


@pytest.mark.parametrize(
    ("args", "route"),
    [
        (("keys", "create", "--org", "acme"), "POST /admin/v1/keys"),
        (("orgs", "create", "acme"), "POST /admin/v1/orgs"),
        (("teams", "create", "red", "--org", "acme"), "POST /admin/v1/teams"),
    ],
)
def test_whatever_is_made_can_have_a_budget(node, llmhost, args: tuple[str, ...], route: str):
    node.answers[route] = {"id": "x", "org": "acme", "name": "red", "key": "lh-sk-x"}

    llmhost(*args, "--budget-usd", "2.50", "--budget-period", "month")
    llmhost(*args, "--budget-usd", "2.50")

    first, second = (asked["body"] for asked in node.asked)
    assert (first["budget_usd"], first["budget_period"]) == ("2.50", "month")
    assert (second["budget_usd"], second.get("budget_period")) == ("2.50", None)


def test_no_budgets_says_how_to_make_one(node, llmhost):
    node.answers["GET /admin/v1/budgets"] = {"data": []}
    node.answers["GET /admin/v1/orgs/acme/credits"] = {"data": []}

    assert "llmhost budgets create" in llmhost("budgets", "list").stderr
    assert "llmhost credits add acme" in llmhost("credits", "list", "acme").stderr
