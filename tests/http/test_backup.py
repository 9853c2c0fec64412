"""A restore drill: a node is backed up while it answers, dies, and another goes on with its keys and its ledger."""

import json
from collections.abc import Callable
from pathlib import Path

from openai import OpenAI
from server_process import Node, chat_body

MODELS = '[models.echo]\nengine = "fake"\nprice = { output = "1" }\n'


def test_keys_and_ledger_of_a_lost_node_go_on_from_its_backup(
    new_node: Callable[..., Node], client_of: Callable[[Node, str], OpenAI], tmp_path: Path
) -> None:
    node = new_node(MODELS).start()
    key = node.create_key("acme")["key"]
    bearer = {"authorization": f"Bearer {key}"}
    target = tmp_path / "backup"
    client = client_of(node, key)
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": chat_body()}
    content = json.dumps(line).encode()
    kept = client.files.create(file=("lines.jsonl", content), purpose="batch")
    path = "/v1/chat/completions"
    with node.http.stream(
        "POST", node.url + path, json=chat_body(max_tokens=3_000, stream=True), headers=bearer
    ) as running:
        next(running.iter_bytes())
        made = node.cli("backup", str(target), "--json")
    assert made.returncode == 0, made.stderr
    assert node.post(path, chat_body(max_tokens=2), headers=bearer).status_code == 200
    taken = node.admin("POST", "/backup", {"path": str(target)})
    assert (taken.status_code, "not empty" in taken.text) == (409, True)
    assert node.admin("POST", "/backup", {"path": "here"}).json()["error"]["param"] == "path"
    assert node.post("/admin/v1/backup", {"path": "/x"}, headers=bearer).status_code == 403
    node.kill()

    other = new_node(MODELS)
    back = other.cli("restore", str(target), "--json")
    assert back.returncode == 0, back.stderr
    manifest = json.loads(back.stdout)
    assert manifest == json.loads(made.stdout)
    assert "not empty" in other.cli("restore", str(target)).stderr
    other.start()
    assert other.post(path, chat_body(max_tokens=2), headers=bearer).status_code == 200
    assert client_of(other, key).files.content(kept.id).content == content
    assert "Stop it" in other.cli("restore", str(target)).stderr
    entries = other.entries()
    assert [row["seq"] for row in entries] == list(range(1, manifest["entries"] + 2))
    assert entries[-1]["prev_hash"] == manifest["head"]
    assert entries[-1]["node_id"] == manifest["node_id"]
    assert other.verified()["ok"]
    other.stop()

    stopped = other.cli("backup", str(tmp_path / "second"), "--json")
    assert json.loads(stopped.stdout)["entries"] == manifest["entries"] + 1
