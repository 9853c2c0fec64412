"""The audit log of a real server: what was screened and changed is in it after a kill, and tampering is found."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import openai
import pytest
from server_process import Node, environment

SETTINGS = """
[safety]
blocked_words = ["forbidden"]

[models.fake]
engine = "fake"
"""
SECRET = "the forbidden plans of project Manhattan"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("audited"), SETTINGS)
    try:
        yield node.start()
    finally:
        node.close()


def llmhost(node: Node, *args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "llmhost", *args, "--data-dir", str(node.data_dir)],
        cwd=node.folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def rows(node: Node, **query: str) -> list[dict[str, Any]]:
    headers = {"authorization": f"Bearer {node.admin_token}"}
    answer = node.http.get(f"{node.url}/admin/v1/audit", params=query, headers=headers)
    return answer.json()["data"]


def say(node: Node, key: str, text: str) -> str | None:
    client = openai.OpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0)
    with client:
        answer = client.chat.completions.create(
            model="fake", max_tokens=3, messages=[{"role": "user", "content": text}]
        )
    return answer.choices[0].finish_reason


def made(node: Node, org: str) -> dict[str, Any]:
    """A key of a new organisation."""
    admin = {"authorization": f"Bearer {node.admin_token}"}
    node.http.post(f"{node.url}/admin/v1/orgs", json={"name": org}, headers=admin)
    body = {"org": org}
    key: dict[str, Any] = node.http.post(
        f"{node.url}/admin/v1/keys", json=body, headers=admin
    ).json()
    return key


def test_policies_and_the_log_outlive_a_kill_and_the_log_knows_when_it_was_changed(node: Node):
    lax, key = made(node, "zenith")["key"], made(node, "acme")
    (node.folder / "policy.json").write_text('{"input": {"words": "warn"}, "words": ["plans"]}')
    done = llmhost(node, "safety", "policies", "set", "zenith", "policy.json")
    assert done.stdout == "Policy zenith@1 is made and in force\n", done.stderr
    assert say(node, lax, SECRET) == "length"
    with pytest.raises(openai.BadRequestError) as refused:
        say(node, key["key"], SECRET)
    assert refused.value.code == "content_policy_violation"
    assert len(rows(node, kind="screening")) == 2

    node.kill()
    node.start()
    admin = {"authorization": f"Bearer {node.admin_token}"}

    assert say(node, lax, SECRET) == "length"
    back = f"{node.url}/admin/v1/orgs/zenith/policies/default/activate"
    node.http.post(back, headers=admin)
    with pytest.raises(openai.BadRequestError):
        say(node, lax, SECRET)
    [screening] = rows(node, kind="screening", org="acme")
    assert (screening["org"], screening["actor"]) == ("acme", key["id"])
    assert (screening["action"], screening["target"]) == ("block", "fake@1")
    assert screening["detail"]["findings"][0]["rule"] == "blocked_words[0]"
    assert [row["action"] for row in rows(node, kind="admin", org="acme")] == ["create_key"]
    verdict = node.http.get(f"{node.url}/admin/v1/audit/verify", headers=admin)
    assert verdict.json()["ok"] is True

    say(node, key["key"], "hello")
    node.stop()
    made_offline = llmhost(node, "keys", "create", "--org", "acme", "--json")
    assert made_offline.returncode == 0
    exported = llmhost(node, "audit", "export").stdout
    counted, newest = map(json.loads, exported.splitlines()[-2:])
    assert (counted["kind"], counted["action"]) == ("allowed", "allow")
    assert (newest["action"], newest["detail"]["id"]) == (
        "create_key",
        json.loads(made_offline.stdout)["id"],
    )
    for hidden in (SECRET, "Manhattan", key["key"]):
        assert hidden not in exported
        assert hidden.encode() not in (node.data_dir / "audit.db").read_bytes()

    with closing(sqlite3.connect(node.data_dir / "audit.db")) as db:
        db.execute("DELETE FROM rows WHERE seq = ?", (screening["id"],))
        db.commit()
    found = llmhost(node, "audit", "verify", "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout)["row"] == int(screening["id"])


def test_a_prompt_that_a_policy_has_kept_is_read_by_those_who_may_and_that_is_written_down(
    node: Node,
):
    node.start()
    owner, other = made(node, "keeper"), made(node, "stranger")
    admins = [
        node.admin("POST", "/keys", {"org": org, "role": "admin"}).json()["key"]
        for org in ("keeper", "stranger")
    ]
    policy = {"policy": {"keep_prompts": "found", "input": {"words": "warn"}}}
    assert node.admin("POST", "/orgs/keeper/policies", policy).status_code == 201
    for text in ("the forbidden plans", "hello"):
        say(node, owner["key"], text)
    [row] = rows(node, kind="screening", org="keeper")
    path = f"/admin/v1/audit/{row['id']}/prompt"

    read = [
        node.http.get(node.url + path, headers={"authorization": f"Bearer {key}"}).status_code
        for key in (*admins, other["key"])
    ]
    assert read == [200, 404, 403]
    statuses = [one["detail"]["status"] for one in rows(node, action="read_prompt")]
    assert statuses == [403, 404, 200]  # who was refused is written down, too
    node.stop()
    told = llmhost(node, "audit", "prompt", row["id"])
    assert told.stdout == "the forbidden plans\n", told.stderr
    assert b"forbidden plans" not in (node.data_dir / "audit.db").read_bytes()
