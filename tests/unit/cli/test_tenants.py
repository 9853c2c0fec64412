"""`llmhost orgs`, `teams` and `keys`: what is asked of a node, and what is said."""

import json

import pytest

TEAM = {"id": "acme/search", "org": "acme", "name": "search", "requests_per_minute": 60}
TEAM |= {"state": "active", "created_at": 1767225600, "archived_at": None}
KEY = {"id": "k1", "org": "acme", "state": "active", "expires_at": 1767225600}


def test_limits_are_sent_as_the_api_calls_them(node, llmhost):
    node.answers["POST /admin/v1/teams"] = TEAM

    llmhost(
        *("teams", "create", "search", "--org", "acme", "--rpm", "60", "--tpm", "500"),
        *("--output-tpm", "100", "--concurrency", "4"),
    )

    assert node.asked[0]["body"] == {
        "org": "acme",
        "name": "search",
        "requests_per_minute": 60,
        "input_tokens_per_minute": 500,
        "output_tokens_per_minute": 100,
        "max_concurrency": 4,
    }


def test_none_takes_a_limit_away_and_what_is_not_named_stays(node, llmhost):
    node.answers["PATCH /admin/v1/orgs/acme"] = {"name": "acme", "state": "active"}

    result = llmhost("orgs", "update", "acme", "--rpm", "none", "--input-tpm", "9", "--enable")

    assert node.asked[0]["body"] == {
        "requests_per_minute": None,
        "input_tokens_per_minute": 9,
        "disabled": False,
    }
    assert result.stdout == "Organisation acme is changed and active\n"


def test_a_key_is_changed_by_what_is_named(node, llmhost, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.time", lambda: 1_000_000.0)
    node.answers["PATCH /admin/v1/keys/k1"] = KEY | {"state": "disabled"}

    said = llmhost("keys", "update", "k1", "--disable", "--models", "a, b", "--role", "billing")
    llmhost("keys", "update", "k1", "--models", "all", "--expires-days", "none", "--name", "")
    llmhost("keys", "update", "k1", "--expires-days", "2")

    assert said.stdout == "Key k1 of acme is changed and disabled\n"
    assert [asked["body"] for asked in node.asked] == [
        {"disabled": True, "models": ["a", "b"], "role": "billing"},
        {"models": None, "expires_at": None, "name": None},
        {"expires_at": 1_172_800},
    ]


@pytest.mark.parametrize(
    "args",
    [
        ("keys", "update", "k1"),
        ("keys", "update", "k1", "--rpm", "0"),
        ("keys", "update", "k1", "--rpm", "many"),
        ("keys", "update", "k1", "--tpm", "-1"),
        ("keys", "update", "k1", "--expires-days", "soon"),
        ("keys", "update", "k1", "--expires-days", "-1"),
        ("keys", "update", "k1", "--role", "king"),
        ("keys", "update", "k1", "--models", ","),
        ("keys", "rotate", "k1", "--overlap", "soon"),
        ("keys", "rotate", "k1", "--overlap", "-1h"),
        ("keys", "rotate", "k1", "--overlap", "1"),
        ("orgs", "update", "acme"),
        ("teams", "update", "search", "--org", "acme"),
        ("teams", "create", "search"),
    ],
)
def test_wrong_usage_asks_nobody(node, llmhost, args: tuple[str, ...]):
    assert llmhost(*args).exit_code == 2
    assert node.asked == []


@pytest.mark.parametrize(
    ("overlap", "overlap_s", "said"),
    [
        ((), 86_400, "the old one works for 24h more"),
        (("--overlap", "90m"), 5_400, "the old one works for 90m more"),
        (("--overlap", "2w"), 1_209_600, "the old one works for 2w more"),
        (("--overlap", "0"), 0, "the old one works no more"),
    ],
)
def test_a_rotation_shows_the_new_key_alone(
    node, llmhost, overlap: tuple[str, ...], overlap_s: int, said: str
):
    node.answers["POST /admin/v1/keys/k1/rotate"] = KEY | {"key": "lh-sk-2"}

    result = llmhost("keys", "rotate", "k1", *overlap)

    assert result.stdout == "lh-sk-2\n"
    assert said in result.stderr
    assert node.asked[0]["body"] == {"overlap_s": overlap_s}
    assert json.loads(llmhost("keys", "rotate", "k1", "--json").stdout)["key"] == "lh-sk-2"


def test_one_thing_is_shown_a_fact_a_line(node, llmhost):
    node.answers["GET /admin/v1/teams/acme/search"] = TEAM

    result = llmhost("teams", "show", "search", "--org", "acme")

    assert "created_at           2026-01-01 00:00\n" in result.stdout
    assert "archived_at          -\n" in result.stdout
    assert json.loads(llmhost("teams", "show", "search", "--org", "acme", "--json").stdout) == TEAM


def test_teams_are_listed_archived_and_restored(node, llmhost):
    node.answers = {
        "GET /admin/v1/teams": {"data": [TEAM]},
        "DELETE /admin/v1/teams/acme/search": TEAM | {"state": "archived"},
        "PATCH /admin/v1/teams/acme/search": TEAM,
    }

    listed = llmhost("teams", "list", "--org", "acme").stdout.splitlines()
    archived = llmhost("teams", "archive", "search", "--org", "acme").stdout
    restored = llmhost("teams", "update", "search", "--org", "acme", "--restore").stdout

    assert listed[1].split() == [
        *("acme", "search", "60", "-", "-", "-", "active", "2026-01-01", "00:00")
    ]
    assert archived == "Team search of acme is archived\n"
    assert restored == "Team search of acme is changed and active\n"
    assert node.asked[-1]["body"] == {"archived": False}


def test_all_pages_of_a_list_are_read(node, llmhost):
    def page(request):
        after = request["query"].get("after")
        number = 0 if after is None else int(after) + 1
        row = {"id": str(number), "name": str(number)}
        return {"data": [row], "has_more": number < 3, "last_id": str(number)}

    node.answers["GET /admin/v1/orgs"] = page

    rows = json.loads(llmhost("orgs", "list", "--json").stdout)

    assert [row["id"] for row in rows] == ["0", "1", "2", "3"]
