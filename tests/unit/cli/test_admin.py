"""Keys, orgs, usage and ledger, of a running node and of a stopped one."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llmhost.cli.admin import Admin
from llmhost.cli.client import HttpAdmin
from llmhost.cli.dates import when
from llmhost.cli.node import Node
from llmhost.core.errors import Conflict

KEY = {"id": "k1", "org": "acme", "team": None, "name": "ci", "requests_per_minute": 60}
KEY |= {"role": "member", "state": "active"}
KEY |= {"models": ["tiny"], "expires_at": None, "created_at": 1767225600, "revoked_at": None}


def test_a_key_is_made_and_shown_alone_on_standard_output(node, llmhost):
    node.answers["POST /admin/v1/keys"] = KEY | {"key": "lh-sk-1", "expires_at": 1767312000}

    result = llmhost(
        *("keys", "create", "--org", "acme", "--team", "t", "--name", "ci"),
        *("--rpm", "60", "--models", "tiny, qwen"),
    )

    assert result.stdout == "lh-sk-1\n"
    assert result.stderr == (
        "Key k1 for acme, good until 2026-01-02 00:00 UTC. Keep it: it is not shown again.\n"
    )
    assert node.asked[0]["body"] == {
        "org": "acme",
        "team": "t",
        "name": "ci",
        "requests_per_minute": 60,
        "models": ["tiny", "qwen"],
    }
    assert node.asked[0]["token"] == "Bearer admin-secret"


def test_a_program_gets_the_new_key_as_an_object(node, llmhost):
    node.answers["POST /admin/v1/keys"] = KEY | {"key": "lh-sk-1"}

    result = llmhost("keys", "create", "--org", "acme", "--json")

    assert json.loads(result.stdout) == KEY | {"key": "lh-sk-1"}
    assert result.stderr == ""


def test_days_become_a_moment(node, llmhost, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.time", lambda: 1_000_000.5)
    node.answers["POST /admin/v1/keys"] = KEY | {"key": "lh-sk-1"}

    llmhost("keys", "create", "--org", "acme", "--expires-days", "1.5")

    assert node.asked[0]["body"]["expires_at"] == 1_000_000 + 129_600


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("--org", "a", "--rpm", "0"),
        ("--org", "a", "--expires-days", "0"),
        ("--org", "a", "--expires-days", "nan"),
        ("--org", "a", "--expires-days", "inf"),
        ("--org", "a", "--models", " ,"),
        ("--org", "a", "--nope"),
    ],
)
def test_wrong_usage_exits_with_2_and_asks_nobody(node, llmhost, args: tuple[str, ...]):
    result = llmhost("keys", "create", *args)

    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert node.asked == []


def test_keys_are_listed_for_people_and_programs(node, llmhost):
    node.answers["GET /admin/v1/keys"] = {"data": [KEY]}

    table = llmhost("keys", "list", "--org", "acme")
    listed = llmhost("keys", "list", "--json")

    assert table.stdout.splitlines() == [
        "ID  ORG   TEAM  NAME  ROLE    RPM  MODELS  STATE   CREATED           EXPIRES  REVOKED",
        "k1  acme     -  ci    member   60  tiny    active  2026-01-01 00:00        -        -",
    ]
    assert json.loads(listed.stdout) == [KEY]
    assert [asked["query"] for asked in node.asked] == [{"org": "acme"}, {}]


def test_no_keys_is_said_without_disturbing_a_pipe(node, llmhost):
    node.answers["GET /admin/v1/keys"] = {"data": []}

    result = llmhost("keys", "list")

    assert (result.stdout, result.exit_code) == ("", 0)
    assert result.stderr == "No keys. `llmhost keys create --org NAME` makes one.\n"
    assert llmhost("keys", "list", "--json").stdout == "[]\n"


def test_a_key_is_revoked_by_its_id(node, llmhost):
    node.answers["DELETE /admin/v1/keys/a/b"] = KEY | {"id": "a/b", "revoked_at": 1}

    assert llmhost("keys", "revoke", "a/b").stdout == "Key a/b of acme is revoked\n"
    assert node.asked[0]["raw_path"] == "/admin/v1/keys/a%2Fb"


def test_orgs_are_made_and_listed(node, llmhost):
    org = {"id": "o1", "name": "acme", "requests_per_minute": 9, "state": "active"}
    org |= {"created_at": 1767225600}
    node.answers = {"POST /admin/v1/orgs": org, "GET /admin/v1/orgs": {"data": [org]}}

    assert llmhost("orgs", "create", "acme").stdout == "Organisation acme is o1\n"
    assert json.loads(llmhost("orgs", "create", "acme", "--json").stdout) == org
    assert llmhost("orgs", "list").stdout.splitlines() == [
        "ID  NAME  RPM  INPUT TPM  OUTPUT TPM  CONCURRENCY  STATE   CREATED",
        "o1  acme    9          -           -            -  active  2026-01-01 00:00",
    ]
    assert node.asked[0]["body"] == {"name": "acme"}


def test_a_refusal_is_one_sentence_on_stderr_and_exit_1(node, llmhost):
    error = {"error": {"message": "The organisation 'acme' exists.", "type": "x"}}
    node.answers["POST /admin/v1/orgs"] = (409, error)

    result = llmhost("orgs", "create", "acme")

    assert (result.stdout, result.exit_code) == ("", 1)
    assert result.stderr == "Error: The organisation 'acme' exists.\n"


def test_debug_shows_where_an_error_comes_from(node, llmhost):
    node.answers["POST /admin/v1/orgs"] = (409, {"error": {"message": "It exists."}})

    with pytest.raises(Exception, match=r"It exists\.") as caught:
        llmhost("--debug", "orgs", "create", "acme")

    assert type(caught.value).__name__ == "Refused"


def test_a_wrong_token_is_explained(node, llmhost, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMHOST_ADMIN_TOKEN", "wrong")

    result = llmhost("orgs", "list")

    assert result.stderr == (
        "Error: The admin token is wrong."
        " Set LLMHOST_ADMIN_TOKEN to the admin token in server.json of the node's data dir.\n"
    )


def test_a_token_that_no_header_can_hold_is_refused(node, llmhost, monkeypatch):
    monkeypatch.setenv("LLMHOST_ADMIN_TOKEN", "schlüssel")

    assert llmhost("orgs", "list").stderr == "Error: A key or token has ASCII characters only.\n"


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"object": "list"}'])
def test_another_server_on_that_port_is_recognised(node, llmhost, body: bytes):
    node.answers["GET /admin/v1/orgs"] = body

    result = llmhost("orgs", "list")

    assert result.stderr == f"Error: What answers at {node.url} is not an llmhost server.\n"


def test_an_error_without_our_form_still_makes_a_sentence(node, llmhost):
    node.answers["GET /admin/v1/orgs"] = (502, b"<html>")

    assert llmhost("orgs", "list").stderr == f"Error: {node.url} answered 502 Bad Gateway.\n"


def test_a_named_node_that_does_not_answer_is_reported(llmhost):
    result = llmhost("orgs", "list", "--url", "http://127.0.0.1:1")

    assert result.exit_code == 1
    assert result.stderr == (
        "Error: No llmhost server answers at http://127.0.0.1:1. Start one with `llmhost serve`.\n"
    )


ROW = {"requests": 12, "fresh_input_tokens": 100, "cached_input_tokens": 7, "output_tokens": 50}
ROW |= {"engine_ns": 1_500_000_000, "amount_nano": 30_070_000}


def test_usage_adds_up_by_what_was_asked(node, llmhost):
    node.answers["GET /admin/v1/usage"] = {"data": [{"team": "search", **ROW}]}

    result = llmhost(
        *("usage", "--by", "team", "--since", "2026-01-01"),
        *("--until", "2026-01-31T12:00:00+02:00"),
    )

    assert result.stdout.splitlines() == [
        "TEAM    REQUESTS  INPUT  CACHED  OUTPUT  ENGINE S   CHARGED",
        "search        12    100       7      50     1.500  $0.03007",
    ]
    assert node.asked[0]["query"] == {
        "limit": "1000",
        "by": "team",
        "since": "2026-01-01T00:00:00Z",
        "until": "2026-01-31T10:00:00Z",
    }


def test_usage_is_by_org_unless_asked_otherwise(node, llmhost):
    node.answers["GET /admin/v1/usage"] = {"data": [{"org": "acme", **ROW}]}

    assert json.loads(llmhost("usage", "--json").stdout) == [{"org": "acme", **ROW}]
    assert node.asked[0]["query"] == {"limit": "1000", "by": "org"}


@pytest.mark.parametrize(
    "args",
    [
        ("--by", "colour"),
        ("--since", "yesterday"),
        ("--since", "2026-13-01"),
        ("--since", "99999w"),
        ("--since", "2026-02-01", "--until", "2026-01-01"),
    ],
)
def test_a_time_or_grouping_that_is_none_is_wrong_usage(node, llmhost, args: tuple[str, ...]):
    assert llmhost("usage", *args).exit_code == 2
    assert node.asked == []


def test_ages_count_back_from_now():
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)

    assert when("24h", now) == datetime(2026, 1, 30, 12, tzinfo=UTC)
    assert when("7d", now) == datetime(2026, 1, 24, 12, tzinfo=UTC)
    assert when("2w", now) == datetime(2026, 1, 17, 12, tzinfo=UTC)
    assert when("2026-01-02T03:04", now) == datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


def test_a_whole_ledger_verifies(node, llmhost):
    whole = {"ok": True, "entries": 3, "head": "abc", "problem": None}
    node.answers["GET /admin/v1/ledger/verify"] = whole

    assert llmhost("ledger", "verify").stdout == "The ledger is whole: 3 entries, head abc\n"
    assert json.loads(llmhost("ledger", "verify", "--json").stdout) == whole


def test_a_damaged_ledger_exits_with_1(node, llmhost):
    damaged = {"ok": False, "entries": 3, "head": "abc", "problem": "entry 2 was changed"}
    node.answers["GET /admin/v1/ledger/verify"] = damaged

    plain, asjson = llmhost("ledger", "verify"), llmhost("ledger", "verify", "--json")

    assert (plain.exit_code, asjson.exit_code) == (1, 1)
    assert (plain.stdout, plain.stderr) == ("", "The ledger is damaged: entry 2 was changed\n")
    assert json.loads(asjson.stdout) == damaged


def test_the_ledger_is_exported_one_object_a_line(node, llmhost):
    entries = [{"request_id": "r1", "amount_nano": 1}, {"request_id": "r2", "amount_nano": 2}]
    node.answers["GET /admin/v1/ledger/export"] = b"".join(
        json.dumps(entry).encode() + b"\n" for entry in entries
    )

    plain = llmhost("ledger", "export")

    assert [json.loads(line) for line in plain.stdout.splitlines()] == entries
    assert llmhost("ledger", "export", "--json").stdout == plain.stdout


def test_an_export_that_breaks_off_is_a_failure(node, llmhost):
    node.answers["GET /admin/v1/ledger/export"] = b'{"request_id": "r1"}\n{"requ'

    result = llmhost("ledger", "export")

    assert result.exit_code == 1
    assert result.stdout == '{"request_id": "r1"}\n'
    assert result.stderr.startswith("Error: The answer broke off")


class Offline:
    """What a stopped node's data dir answers; the real one is tested where it lives."""

    opened: Path | None = None
    closed = False

    def __init__(self, data_dir: Path) -> None:
        type(self).opened = data_dir

    def create_org(self, name: str, **limits: int | None) -> dict[str, Any]:
        raise Conflict(f"The organisation {name!r} exists.")

    def orgs(self) -> list[dict[str, Any]]:
        return [{"id": "o1", "name": "offline", "created_at": 0}]

    def org(self, name: str) -> dict[str, Any]:
        return {"id": name}

    def update_org(self, name: str, **changes: Any) -> dict[str, Any]:
        return {"id": name, **changes}

    def create_team(self, org: str, name: str, **limits: int | None) -> dict[str, Any]:
        return {"id": f"{org}/{name}", **limits}

    def teams(self, *, org: str | None = None) -> list[dict[str, Any]]:
        return []

    def team(self, org: str, name: str) -> dict[str, Any]:
        return {"id": f"{org}/{name}"}

    def update_team(self, org: str, name: str, **changes: Any) -> dict[str, Any]:
        return {"id": f"{org}/{name}", **changes}

    def archive_team(self, org: str, name: str) -> dict[str, Any]:
        return {"id": f"{org}/{name}"}

    def create_key(self, **facts: Any) -> dict[str, Any]:
        return {"id": "k1", "key": "lh-sk-off", **facts}

    def keys(self, *, org: str | None = None, team: str | None = None) -> list[dict[str, Any]]:
        return []

    def key(self, key_id: str) -> dict[str, Any]:
        return {"id": key_id}

    def update_key(self, key_id: str, **changes: Any) -> dict[str, Any]:
        return {"id": key_id, **changes}

    def rotate_key(self, key_id: str, *, overlap_s: int) -> dict[str, Any]:
        return {"id": key_id, "key": "lh-sk-off", "overlap_s": overlap_s}

    def revoke_key(self, key_id: str) -> dict[str, Any]:
        return {}

    def usage(self, **query: Any) -> list[dict[str, Any]]:
        return [{query["by"]: "x", **ROW}]

    def verify_ledger(self) -> dict[str, Any]:
        return {"ok": True, "entries": 0, "head": "-", "problem": None}

    def export_ledger(self) -> Iterator[dict[str, Any]]:
        yield {"request_id": "r1"}

    def close(self) -> None:
        type(self).closed = True


def test_both_ways_offer_the_same_methods():
    ways: tuple[Admin, ...] = (
        HttpAdmin(Node("http://127.0.0.1:1", None)),
        Offline(Path()),
    )

    for way in ways:
        way.close()


def test_a_stopped_node_is_administered_through_its_data_dir(llmhost, host, tmp_path: Path):
    host.OfflineAdmin = Offline

    assert "offline" in llmhost("orgs", "list").stdout
    assert Offline.opened == tmp_path / "data"
    assert Offline.closed
    assert llmhost("keys", "create", "--org", "acme").stdout == "lh-sk-off\n"
    assert llmhost("usage", "--by", "key").exit_code == 0
    assert llmhost("ledger", "verify").exit_code == 0
    assert llmhost("ledger", "export").stdout == '{"request_id": "r1"}\n'
    assert llmhost("orgs", "list", "--data-dir", str(tmp_path)).exit_code == 0
    assert Offline.opened == tmp_path


def test_a_refusal_of_a_stopped_node_looks_the_same(llmhost, host):
    host.OfflineAdmin = Offline
    Offline.closed = False

    result = llmhost("orgs", "create", "acme")

    assert (result.exit_code, result.stderr) == (1, "Error: The organisation 'acme' exists.\n")
    assert Offline.closed
