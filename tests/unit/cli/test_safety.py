"""`llmhost audit` and `llmhost safety policies`: what is asked of a node, and what is said."""

import json
from pathlib import Path

VERDICT = {"ok": True, "rows": 5, "pruned": 2, "head": "7:ab", "row": None, "problem": None}
ROW = {"id": "7", "at_ns": 1767225600 * 10**9, "kind": "admin", "org": "acme", "actor": "operator"}
ROW |= {"action": "create_key", "target": "/admin/v1/keys", "request_id": None, "mark": "ab"}
ROW |= {"detail": {"method": "POST", "status": 201}}
POLICY = {"id": "acme@2", "org": "acme", "version": 2, "active": True, "created_at": 1767225600}
POLICY |= {"made_by": "operator", "note": None, "policy": {"words": ["x"]}}
POLICIES = "/admin/v1/orgs/acme/policies"


def test_a_log_that_is_whole_is_said_to_be_so(node, llmhost):
    node.answers["GET /admin/v1/audit/verify"] = VERDICT

    result = llmhost("audit", "verify", "--head", "7:ab")

    assert node.asked[0]["query"] == {"head": "7:ab"}
    assert (result.exit_code, result.stdout) == (
        0,
        "The audit log is whole: 5 rows, 2 pruned, head 7:ab\n",
    )


def test_a_damaged_log_ends_with_1_and_names_the_place(node, llmhost):
    broken = VERDICT | {"ok": False, "row": 3, "problem": "row 3: rows 3 to 4 were deleted"}
    node.answers["GET /admin/v1/audit/verify"] = broken

    result = llmhost("audit", "verify")

    assert result.exit_code == 1
    assert "row 3: rows 3 to 4 were deleted" in result.stderr
    assert llmhost("audit", "verify", "--json").exit_code == 1


def test_rows_are_listed_by_what_they_are_of(node, llmhost):
    node.answers["GET /admin/v1/audit"] = {"data": [ROW], "has_more": True, "last_id": "7"}

    said = llmhost("audit", "list", "--org", "acme", "--kind", "admin", "--since", "2026-01-01")

    assert node.asked[0]["query"] == {
        **{"limit": "50", "org": "acme", "kind": "admin", "since": "2026-01-01T00:00:00Z"}
    }
    assert said.stdout.splitlines()[1].split()[:5] == [
        *("7", "2026-01-01", "00:00", "admin", "acme")
    ]


def test_rows_are_exported_one_a_line(node, llmhost):
    lines = "".join(json.dumps(row) + "\n" for row in (ROW, ROW))
    node.answers["GET /admin/v1/audit/export"] = lines.encode()

    assert llmhost("audit", "export").stdout == lines


def test_a_policy_is_made_of_a_file(node, llmhost, tmp_path: Path):
    node.answers[f"POST {POLICIES}"] = (201, POLICY)
    (tmp_path / "policy.json").write_text('{"words": ["x"]}')

    result = llmhost("safety", "policies", "set", "acme", "policy.json", "--note", "why")
    llmhost("safety", "policies", "set", "acme", "-", "--no-activate", stdin="{}")

    assert [asked["body"] for asked in node.asked] == [
        {"policy": {"words": ["x"]}, "note": "why", "activate": True},
        {"policy": {}, "note": None, "activate": False},
    ]
    assert result.stdout == "Policy acme@2 is made and in force\n"
    assert llmhost("safety", "policies", "set", "acme", "none.json").exit_code == 2


def test_a_policy_is_shown_as_it_can_be_set_again(node, llmhost):
    node.answers[f"GET {POLICIES}/active"] = POLICY

    assert json.loads(llmhost("safety", "policies", "show", "acme").stdout) == {"words": ["x"]}
    shown = llmhost("safety", "policies", "show", "acme", "--json").stdout
    assert json.loads(shown) == POLICY


def test_a_version_is_put_in_force_and_back(node, llmhost):
    in_force = {"id": "default@1", "org": "acme", "version": None}
    node.answers[f"POST {POLICIES}/default/activate"] = in_force

    result = llmhost("safety", "policies", "activate", "acme", "default")

    assert result.stdout == "Policy default@1 is in force for acme\n"


def test_a_dry_run_says_what_would_have_changed(node, llmhost):
    moves = [{"before": "block", "after": "warn", "count": 2}]
    answer = {"org": "acme", "screenings": 9, "changed": 2, "moves": moves, "examples": []}
    node.answers[f"POST {POLICIES}/dry-run"] = answer

    result = llmhost(
        "safety", "policies", "dry-run", "acme", "--version", "2", "--since", "2026-01-01"
    )

    assert node.asked[0]["body"] == {"since": "2026-01-01T00:00:00Z", "version": 2}
    assert result.stdout.splitlines()[0] == "2 of 9 screenings would have ended otherwise."
    assert result.stdout.splitlines()[-1].split() == ["block", "warn", "2"]
    assert llmhost("safety", "policies", "dry-run", "acme").exit_code == 2
