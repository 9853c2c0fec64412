"""A node whose model is at a hub: fetched at the start, and by a pull beside the running node."""

import json
from collections.abc import Callable

import pytest
from openai import OpenAI
from server_process import Node
from tests.stand_in_hub import Hub, serving, settings

from llmhost.deploy.sources import BUILT_IN_MODELS

MODELS = """
[models.far]
source = "hf:org/tiny"
[models.far.options]
device = "cpu"
threads = 1

[models.later]
source = "hf:org/tiny@v2"
load = "request"
"""


def test_a_node_fetches_its_model_and_a_pull_beside_it_fetches_another(
    new_node: Callable[..., Node],
    client_of: Callable[..., OpenAI],
    monkeypatch: pytest.MonkeyPatch,
):
    with serving(Hub()) as hub:
        repository = hub.add_folder("org/tiny", BUILT_IN_MODELS / "tiny")
        repository.commit(
            {**repository.commits[repository.revisions["main"]], "new.json": b"{}"}, "v2"
        )
        for name, value in settings(hub).items():
            monkeypatch.setenv(name, value)
        node = new_node(MODELS).start()

        answer = client_of(node, "any").chat.completions.create(
            model="far", messages=[{"role": "user", "content": "Hi"}], max_tokens=4
        )
        pulled = node.cli("pull", "later", "--json")

    assert answer.choices[0].message.content
    assert pulled.returncode == 0, pulled.stderr
    assert json.loads(pulled.stdout)["source"] == "hf:org/tiny@v2"
    rows = node.admin("GET", "/models").json()["data"]
    assert {row["name"]: row["files"] for row in rows} == {"far": "present", "later": "present"}
    assert "files.fetched" in node.log()
