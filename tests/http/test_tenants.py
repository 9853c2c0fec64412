"""Organisations, teams and keys on a real server: who reaches what, and what a restart remembers."""

import json
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_process import Node, chat_body, cli

from llmhost.core.caller import Role

NewNode = Callable[..., Node]

ROLES = [role.value for role in Role]
SECRET_ORG = "zq-foreign-org"
SECRET_TEAM = "zq-foreign-team"
SECRET_AMOUNT = "0.123456789"


def holder(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def ask(node: Node, key: str, **body: Any) -> httpx.Response:
    return node.post("/v1/chat/completions", chat_body(max_tokens=1, **body), headers=holder(key))


@dataclass
class Town:
    """A server with an organisation of which there are keys of every role, and another one."""

    node: Node
    keys: dict[str, str] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
    foreign: dict[str, Any] = field(default_factory=dict)
    budget: str = ""
    file: str = ""
    batch: str = ""
    row: str = ""
    """The other one's; the last is of the audit log."""
    marks: set[str] = field(default_factory=set)
    """What nobody outside the other organisation may ever read."""
    operations: list[tuple[str, str]] = field(default_factory=list)

    def foreign_rows(self) -> list[Any]:
        """All that the operator sees of the other organisation."""
        return [
            self.node.admin("GET", f"/orgs/{SECRET_ORG}").json(),
            self.node.admin("GET", "/teams", org=SECRET_ORG).json(),
            self.node.admin("GET", "/keys", org=SECRET_ORG).json(),
            self.node.admin("GET", "/prices", org=SECRET_ORG).json(),
            self.node.admin("GET", "/budgets", org=SECRET_ORG).json(),
        ]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    node = Node(tmp_path_factory.mktemp("town"), "[models.echo]\nengine = 'fake'\n").start()
    try:
        yield _settled(Town(node))
        assert "Traceback" not in node.log()
    finally:
        node.close()


def _settled(town: Town) -> Town:
    node = town.node
    for role in ROLES:
        town.keys[role] = node.create_key("own", role=role)["key"]
    town.own = node.create_key("own", team="red", name="target")
    town.foreign = node.create_key(SECRET_ORG, team=SECRET_TEAM, name="zq-foreign-name")
    requests = [ask(node, town.foreign["key"]) for _ in range(5)]
    ask(node, town.keys["member"])
    ask(node, town.own["key"])
    for org, amount in (("own", "0.11"), (SECRET_ORG, SECRET_AMOUNT)):
        price = {"model": "echo", "org": org, "input": amount, "output": "0"}
        assert node.post("/admin/v1/prices", price, headers=holder(node.admin_token)).is_success
    town.marks = {SECRET_ORG, SECRET_TEAM, "zq-foreign-name", town.foreign["id"], SECRET_AMOUNT}
    budget = {"org": SECRET_ORG, "usd": "5"}
    made = node.post("/admin/v1/budgets", budget, headers=holder(node.admin_token))
    town.budget = made.json()["id"]
    town.marks.add(town.budget)
    town.marks |= {answer.headers["x-request-id"] for answer in requests}
    town.file, town.batch = _file_and_batch(node, town.foreign["key"])
    town.marks |= {town.file, town.batch}
    town.row = node.admin("GET", "/audit", org=SECRET_ORG).json()["data"][0]["id"]
    for path, item in node.get("/admin/openapi/openapi.json").json()["paths"].items():
        if path.startswith("/admin/v1/"):
            town.operations += [(method.upper(), path) for method in item]
    return town


def _file_and_batch(node: Node, key: str) -> tuple[str, str]:
    """Ids of a file and of a batch of it."""
    line = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": {}}
    sent = node.http.post(
        f"{node.url}/v1/files",
        headers=holder(key),
        data={"purpose": "batch"},
        files={"file": ("zq.jsonl", json.dumps(line).encode())},
    )
    wish = {
        "input_file_id": sent.json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    made = node.post("/v1/batches", wish, headers=holder(key))
    return sent.json()["id"], made.json()["id"]


# ------------------------------------------------------------ nobody sees another's


PARTS = (
    *("org", "team", "key_id", "target", "version", "budget", "file_id", "batch_id"),
    *("review_id", "row_id"),
)
QUERIES = ("org", "team", "after", "by", "limit", "model")
names = st.sampled_from(["own", "foreign", "nobody"])


def _named(town: Town, part: str, whose: str) -> str:
    """A name to put into a path, a query or a body."""
    known = {
        "org": {"own": "own", "foreign": SECRET_ORG},
        "team": {"own": "red", "foreign": SECRET_TEAM},
        "key_id": {"own": town.own["id"], "foreign": town.foreign["id"]},
        "after": {"own": town.own["id"], "foreign": town.foreign["id"]},
        "by": {"own": "key", "foreign": "org"},
        "limit": {"own": "1", "foreign": "1000"},
        "target": {"own": "echo/load", "foreign": "none/load"},
        "version": {"own": "echo/1", "foreign": "echo/2"},
        "model": {"own": "echo", "foreign": "none"},
        "budget": {"own": "none", "foreign": town.budget},
        "file_id": {"own": "none", "foreign": town.file},
        "batch_id": {"own": "none", "foreign": town.batch},
        "review_id": {"own": "none", "foreign": "none"},
        "row_id": {"own": "1", "foreign": town.row},
    }
    return known[part].get(whose, {"by": "day", "limit": "2"}.get(part, "zz-nobody"))


BODIES: tuple[dict[str, Any], ...] = (
    {},
    {"org": "{org}", "name": "new"},
    {"org": "{org}", "team": "blue"},
    {"name": "renamed"},
    {"max_concurrency": 1},
    {"disabled": True},
    {"disabled": False},
    {"archived": False},
    {"overlap_s": 0},
)


@settings(max_examples=16, deadline=None)  # of a hundred requests each
@given(
    role=st.sampled_from([*ROLES, "admin", "admin"]),
    whose=st.fixed_dictionaries(dict.fromkeys((*PARTS, *QUERIES), names)),
    asked=st.lists(st.sampled_from(QUERIES), max_size=2),
    body=st.sampled_from(BODIES),
)
def test_no_route_shows_or_changes_what_is_anothers(
    town: Town, role: str, whose: dict[str, str], asked: list[str], body: dict[str, Any]
) -> None:
    """The routes are read from the OpenAPI schema: one that is new is tried, too."""
    place = {part: _named(town, part, whose[part]) for part in PARTS}
    query = {part: _named(town, part, whose[part]) for part in asked}
    wish = {n: v.format(**place) if isinstance(v, str) else v for n, v in body.items()}
    before = town.foreign_rows()

    for method, path in town.operations:
        url = path.format(**place)
        answer = town.node.http.request(
            method,
            town.node.url + url,
            headers=holder(town.keys[role]),
            params=query,
            json=wish if method in ("POST", "PATCH") else None,
        )
        sent = json.dumps([url, query, wish])
        if path.startswith("/admin/v1/audit"):  # it repeats what these roles have asked for before
            sent += json.dumps([_named(town, part, "foreign") for part in PARTS])
            assert f'"org":"{SECRET_ORG}","actor"' not in answer.text, "a row of the other one's"
        leaked = [mark for mark in town.marks if mark in answer.text and mark not in sent]
        assert not leaked, (role, method, url, query, wish, answer.text)
        assert answer.status_code < 500, (role, method, url, query, wish, answer.text)
    assert town.foreign_rows() == before


BY_NAME = [
    ("GET", "/orgs/{org}", None),
    ("GET", "/teams/{org}/{team}", None),
    ("PATCH", "/teams/{org}/{team}", {"max_concurrency": 1}),
    ("DELETE", "/teams/{org}/{team}", None),
    ("GET", "/keys/{key_id}", None),
    ("PATCH", "/keys/{key_id}", {"disabled": True}),
    ("POST", "/keys/{key_id}/rotate", {"overlap_s": 0}),
    ("DELETE", "/keys/{key_id}", None),
    ("POST", "/teams", {"org": "{org}", "name": "new"}),
    ("POST", "/keys", {"org": "{org}"}),
    ("GET", "/keys?org={org}", None),
    ("GET", "/teams?org={org}", None),
    ("GET", "/keys?after={key_id}", None),
    ("GET", "/teams?after={org}/{team}", None),
    ("GET", "/budgets?org={org}", None),
    ("GET", "/budgets/{budget}", None),
    ("PATCH", "/budgets/{budget}", {"usd": "1"}),
    ("DELETE", "/budgets/{budget}", None),
    ("POST", "/budgets", {"org": "{org}", "usd": "1"}),
    ("GET", "/orgs/{org}/credits", None),
    ("GET", "/prices?org={org}", None),
    ("GET", "/prices/current?model=echo&org={org}", None),
    ("GET", "/prices/versions/{version}", None),
    ("GET", "/prices?after={version}", None),
    ("GET", "/prices?in_force=true&after={version}", None),
]


@pytest.mark.parametrize(("method", "path", "body"), BY_NAME)
def test_anothers_is_answered_like_what_does_not_exist(
    town: Town, method: str, path: str, body: dict[str, Any] | None
) -> None:
    answers = []
    for whose in ("foreign", "nobody"):
        place = {part: _named(town, part, whose) for part in PARTS}
        wish = body and {
            name: str(v).format(**place) if name == "org" else v for name, v in body.items()
        }
        answer = town.node.http.request(
            method,
            f"{town.node.url}/admin/v1{path.format(**place)}",
            headers=holder(town.keys["admin"]),
            json=wish,
        )
        text = answer.text
        for name in place.values():
            text = text.replace(name, "NAME")
        answers.append((answer.status_code, text))

    assert answers[0] == answers[1]
    assert answers[0][0] in (400, 404)


def test_usage_and_ledger_end_at_ones_own(town: Town) -> None:
    def seen(role: str, path: str) -> httpx.Response:
        return town.node.get(f"/admin/v1{path}", headers=holder(town.keys[role]))

    orgs = {role: seen(role, "/usage?by=org").json() for role in ROLES}
    ledger = [json.loads(x) for x in seen("billing", "/ledger/export").text.splitlines()]

    member = [row["requests"] for row in orgs["member"]["data"]]
    assert {row["org"] for row in orgs["billing"]["data"]} == {"own"}
    assert orgs["admin"] == orgs["billing"]
    assert sum(member) < sum(row["requests"] for row in orgs["billing"]["data"])
    assert "error" in orgs["inference"]
    assert {row["org"] for row in ledger} == {"own"}
    assert len(ledger) == sum(row["requests"] for row in orgs["billing"]["data"])
    assert seen("member", "/ledger/export").status_code == 403
    assert seen("admin", "/ledger/verify").status_code == 403


# ------------------------------------------------------------ roles


MAY: dict[str, set[str]] = {
    "admin": {"ask", "models", "usage", "ledger", "keys", "org"},
    "billing": {"usage", "ledger", "org"},
    "member": {"ask", "models", "usage", "org"},
    "inference": {"ask", "models"},
    "reviewer": set(),
}
DOORS = {
    "models": "/v1/models",
    "usage": "/admin/v1/usage",
    "ledger": "/admin/v1/ledger/export",
    "keys": "/admin/v1/keys",
    "org": "/admin/v1/orgs/own",
    "operator": "/admin/v1/ps",
}


@pytest.mark.parametrize("role", ROLES)
def test_a_key_reaches_what_its_role_is_for(town: Town, role: str) -> None:
    answers = {
        name: town.node.get(path, headers=holder(town.keys[role])) for name, path in DOORS.items()
    }
    answers["ask"] = ask(town.node, town.keys[role])

    assert {name for name, answer in answers.items() if answer.status_code == 200} == MAY[role]
    for answer in answers.values():
        if answer.status_code != 200:
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "permission_denied"
            assert role in answer.json()["error"]["message"]


def test_an_organisations_admin_makes_keys_and_can_not_lift_its_limits(town: Town) -> None:
    admin = holder(town.keys["admin"])

    made = town.node.post("/admin/v1/keys", {"org": "own", "role": "inference"}, headers=admin)
    lifted = town.node.http.patch(
        f"{town.node.url}/admin/v1/orgs/own", json={"max_concurrency": None}, headers=admin
    )
    founded = town.node.post("/admin/v1/orgs", {"name": "another"}, headers=admin)

    assert made.status_code == 201
    assert ask(town.node, made.json()["key"]).status_code == 200
    assert (lifted.status_code, founded.status_code) == (403, 403)


# ------------------------------------------------------------ changes, and what is left after a restart


@pytest.fixture
def node(new_node: NewNode) -> Node:
    return new_node("[models.echo]\nengine = 'fake'\n[models.other]\nengine = 'fake'\n").start()


def test_a_rotated_key_works_with_both_secrets_across_a_kill(node: Node) -> None:
    made = node.create_key("acme", models=["echo"])
    rotated = node.admin("POST", f"/keys/{made['id']}/rotate", {"overlap_s": 3600}).json()
    node.kill()
    node.start()

    statuses = [ask(node, row["key"]).status_code for row in (made, rotated)]
    final = node.admin("POST", f"/keys/{made['id']}/rotate", {"overlap_s": 0}).json()

    assert statuses == [200, 200]
    assert rotated["id"] == made["id"]
    assert rotated["models"] == ["echo"]
    assert [ask(node, row["key"]).status_code for row in (made, rotated, final)] == [401, 401, 200]
    usage = node.admin("GET", "/usage", by="key").json()["data"]
    assert [(row["key"], row["requests"]) for row in usage] == [(made["id"], 3)]
    for row in (made, rotated, final):
        assert row["key"] not in node.log()


def test_settings_of_a_key_change_for_the_next_request_and_for_good(node: Node) -> None:
    made = node.create_key("acme", models=["echo"])
    change = {"models": ["other"], "name": "ci", "requests_per_minute": 50, "max_concurrency": 2}

    changed = node.admin("PATCH", f"/keys/{made['id']}", change).json()
    refused = ask(node, made["key"])
    node.kill()
    node.start()

    assert refused.json()["error"]["code"] == "model_not_allowed"
    assert node.admin("GET", f"/keys/{made['id']}").json() == changed
    assert changed["name"] == "ci"
    assert ask(node, made["key"], model="other").headers["x-ratelimit-limit-requests"] == "50"
    cleared = node.admin("PATCH", f"/keys/{made['id']}", {"models": None, "name": None}).json()
    assert (cleared["models"], cleared["name"], cleared["max_concurrency"]) == (None, None, 2)
    assert ask(node, made["key"]).status_code == 200


def test_what_is_done_to_a_stopped_node_holds_when_it_starts(node: Node) -> None:
    keys = [node.create_key("acme", team="red") for _ in range(4)]
    revoked, disabled, rotated, left = (row["id"] for row in keys)
    node.stop()

    done = [
        node.cli("keys", "revoke", revoked),
        node.cli("keys", "update", disabled, "--disable"),
        node.cli("keys", "rotate", rotated, "--overlap", "0"),
        node.cli("orgs", "update", "acme", "--rpm", "9", "--json"),
        node.cli("teams", "create", "blue", "--org", "acme", "--tpm", "7"),
        node.cli("keys", "show", left, "--json"),
    ]
    node.start()

    assert [one.returncode for one in done] == [0] * 6, done
    assert [ask(node, row["key"]).status_code for row in keys] == [401, 401, 401, 200]
    assert ask(node, done[2].stdout.strip()).status_code == 200
    assert node.admin("GET", f"/keys/{left}").json() == json.loads(done[5].stdout)
    assert node.admin("GET", "/orgs/acme").json() == json.loads(done[3].stdout)
    assert node.admin("GET", "/teams/acme/blue").json()["output_tokens_per_minute"] == 7
    node.cli("teams", "archive", "red", "--org", "acme")
    assert ask(node, keys[3]["key"]).status_code == 401
    node.cli("teams", "update", "red", "--org", "acme", "--restore")
    assert ask(node, keys[3]["key"]).status_code == 200
    node.cli("orgs", "update", "acme", "--disable")
    assert ask(node, keys[3]["key"]).status_code == 401


def test_lists_come_in_pages_that_tile_them(node: Node) -> None:
    made = [node.create_key("acme")["id"] for _ in range(7)]
    found: list[str] = []
    page: dict[str, Any] = {"has_more": True}
    while page["has_more"]:
        after = {"after": found[-1]} if found else {}
        page = node.admin("GET", "/keys", limit="3", **after).json()
        found += [row["id"] for row in page["data"]]
        assert page["last_id"] == found[-1]

    assert found == made
    assert [row["id"] for row in json.loads(node.cli("keys", "list", "--json").stdout)] == made


def test_an_admin_key_runs_the_command_line_for_its_organisation(node: Node) -> None:
    key = node.create_key("acme", role="admin")
    node.create_key("beta")
    settings = {"LLMHOST_URL": node.url, "LLMHOST_ADMIN_TOKEN": key["key"]}

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return cli(*words, **settings)

    assert run("keys", "create", "--org", "acme", "--json").returncode == 0
    listed = json.loads(run("keys", "list", "--json").stdout)

    assert {row["org"] for row in listed} == {"acme"}
    assert len(listed) == 2
    assert run("keys", "create", "--org", "beta").returncode == 1
    assert "admin token" in run("ps").stderr


def test_a_run_is_in_the_log_and_in_analytics(node: Node) -> None:
    named = node.post(
        "/v1/chat/completions", chat_body(max_tokens=1), headers={"x-llmhost-run": "job-7/step:2"}
    )
    wrong = [
        node.post("/v1/chat/completions", chat_body(), headers={"x-llmhost-run": run})
        for run in ("", "two words", "x" * 129)
    ]
    node.stop()

    assert named.status_code == 200
    assert [answer.status_code for answer in wrong] == [400] * 3
    assert {answer.json()["error"]["param"] for answer in wrong} == {"x-llmhost-run"}
    assert "run=job-7/step:2" in node.log()
    with sqlite3.connect(node.data_dir / "analytics.db") as database:
        rows = database.execute("SELECT run_id, status FROM requests ORDER BY seq").fetchall()
    assert rows == [("job-7/step:2", 200)] + [(None, 400)] * 3
