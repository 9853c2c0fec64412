"""LoRA adapters as clients and operators meet them: the built-in model with random adapters."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from server_process import Node, eventually
from tests.unit.engines.adapters import peft_answers, save_adapter

from llmhost.deploy.sources import BUILT_IN_MODELS

TINY = BUILT_IN_MODELS / "tiny"
PROMPT = list(range(300, 320))
TOKENS = 12

SETTINGS = """
[models.tiny]
source = "builtin:tiny"
aliases = ["gpt-4o-mini"]
max_adapters = 2
[models.tiny.options]
device = "cpu"
threads = 1
[models.tiny.price]
output = "1.00"
[models.tiny.adapters]
pirate = "adapters/pirate"
clerk = "adapters/clerk"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    for seed, name in enumerate(("pirate", "clerk", "poet")):
        config = {"r": 4, "lora_alpha": 32, "target_modules": ["q_proj", "up_proj", "down_proj"]}
        save_adapter(folder / "adapters" / name, TINY, seed=seed, **config)
    return folder


@pytest.fixture(scope="module")
def node(folder: Path) -> Iterator[Node]:
    node = Node(folder, SETTINGS)
    try:
        yield node.start()
        assert node.stop() == 0
        assert "Traceback" not in node.log()
    finally:
        node.close()


@pytest.fixture
def client(node: Node, client_of: Callable[..., OpenAI]) -> OpenAI:
    return client_of(node, "any")


def answer(client: OpenAI, model: str) -> str:
    done = client.completions.create(
        model=model,
        prompt=PROMPT,
        max_tokens=TOKENS,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    assert done.model == model
    return done.choices[0].text


def rows(node: Node) -> dict[str, dict[str, Any]]:
    return {row["adapter"]: row for row in node.admin("GET", "/adapters").json()["data"]}


def test_adapters_are_listed_below_their_model(client: OpenAI):
    models = {model.id: model.model_extra or {} for model in client.models.list()}

    assert list(models) == ["tiny", "gpt-4o-mini", "tiny:pirate", "tiny:clerk"]
    assert models["tiny:pirate"]["parent"] == "tiny"
    assert models["tiny"]["parent"] is None
    assert client.models.retrieve("gpt-4o-mini:pirate").id == "gpt-4o-mini:pirate"


def test_an_adapters_answer_is_pefts_and_requests_with_others_run_beside_it(
    client: OpenAI, node: Node, folder: Path
):
    from llmhost.text.tokenizer import load_tokenizer

    names = ["tiny", "tiny:pirate", "gpt-4o-mini:pirate", "tiny:clerk", "clerk", "tiny"]
    with ThreadPoolExecutor(len(names)) as pool:
        answers = list(pool.map(lambda name: answer(client, name), names))

    [expected], _ = peft_answers(TINY, folder / "adapters/pirate", [PROMPT], TOKENS)
    assert len(expected) > 3
    assert answers[1] == answers[2]
    assert answers[1].startswith(load_tokenizer(TINY).decode(expected))  # PEFT stops at an end
    assert answers[0] == answers[5]
    assert answers[3] == answers[4]
    assert len({answers[0], answers[1], answers[3]}) == 3
    assert "adapter=pirate" in node.log()
    assert {entry["model"] for entry in node.entries()} == {"tiny@1"}


def test_an_operator_adds_an_adapter_and_the_least_recently_used_one_makes_room(
    client: OpenAI, node: Node, folder: Path
):
    answer(client, "tiny:clerk"), answer(client, "tiny:pirate")
    source = str(folder / "adapters/poet")
    body = {"adapter": "tiny:poet", "source": source}

    with pytest.raises(openai.NotFoundError, match="Did you mean"):
        answer(client, "tiny:poet")
    row = node.admin("POST", "/adapters/load", body).json()
    made = answer(client, "tiny:poet")

    assert (row["state"], row["origin"], row["source"]) == ("ready", "operator", source)
    assert made not in (answer(client, "tiny"), answer(client, "tiny:pirate"))
    states = {name: row["state"] for name, row in rows(node).items()}
    assert states == {"tiny:pirate": "ready", "tiny:clerk": "absent", "tiny:poet": "ready"}
    assert node.loaded("tiny")["adapters"] == ["pirate", "poet"]
    assert node.metric("llmhost_adapters_loaded", model_name="tiny@1") == 2

    gone = node.cli("adapters", "unload", "tiny:poet")
    assert (gone.returncode, gone.stdout) == (0, "tiny:poet is absent\n"), gone.stderr
    with pytest.raises(openai.NotFoundError):
        answer(client, "tiny:poet")
    assert "tiny:poet" not in rows(node)


def test_a_new_adapter_of_an_old_name_does_not_answer_from_the_old_ones_cache(
    client: OpenAI, node: Node, folder: Path
):
    def load(name: str) -> str:
        body = {"adapter": "tiny:guest", "source": str(folder / "adapters" / name)}
        assert node.admin("POST", "/adapters/load", body).status_code == 200
        text = answer(client, "tiny:guest")
        node.admin("POST", "/adapters/unload", {"adapter": "tiny:guest"}).raise_for_status()
        return text

    assert load("pirate") == answer(client, "tiny:pirate")
    assert load("clerk") == answer(client, "tiny:clerk")


def test_vllms_routes_do_the_same_for_the_holder_of_the_admin_token(
    client: OpenAI, node: Node, folder: Path
):
    body = {"lora_name": "tiny:poet", "lora_path": str(folder / "adapters/poet")}
    headers = {"authorization": f"Bearer {node.admin_token}"}

    assert node.post("/v1/load_lora_adapter", body).status_code == 401
    added = node.post("/v1/load_lora_adapter", body, headers=headers)
    assert answer(client, "poet")
    removed = node.post("/v1/unload_lora_adapter", {"lora_name": "poet"}, headers=headers)
    apart = {"lora_name": "poet", "base_model_name": "tiny", "lora_path": body["lora_path"]}
    assert node.post("/v1/load_lora_adapter", apart, headers=headers).status_code == 200
    gone = node.post("/v1/unload_lora_adapter", {"lora_name": "tiny:poet"}, headers=headers)

    assert (added.status_code, added.text) == (
        200,
        "Success: LoRA adapter 'tiny:poet' added successfully.",
    )
    assert (removed.text, gone.text) == (
        "Success: LoRA adapter 'tiny:poet' removed successfully.",
    ) * 2
    with pytest.raises(openai.NotFoundError):
        answer(client, "poet")


def test_what_can_not_be_loaded_says_why_and_leaves_no_name(node: Node, folder: Path):
    bad = node.admin("POST", "/adapters/load", {"adapter": "tiny:bad", "source": str(folder)})
    other = node.admin(
        "POST",
        "/adapters/load",
        {"adapter": "tiny:pirate", "source": str(folder / "adapters/poet")},
    )
    unnamed = node.admin("POST", "/adapters/load", {"adapter": "tiny", "source": str(folder)})

    assert bad.status_code == 503
    assert "is not a PEFT adapter" in bad.json()["error"]["message"]
    assert "tiny:bad" not in rows(node)
    assert other.status_code == 409
    assert "models.toml declares the adapter 'tiny:pirate'" in other.json()["error"]["message"]
    assert unnamed.status_code == 400


def test_an_unloaded_model_has_given_its_adapters_memory_back(client: OpenAI, node: Node):
    answer(client, "tiny:clerk")
    node.admin("POST", "/models/tiny/unload").raise_for_status()

    assert node.metric("llmhost_device_leased_bytes") == 0
    assert node.metric("llmhost_adapters_loaded") == 0
    assert answer(client, "tiny:clerk")
    assert rows(node)["tiny:clerk"]["state"] == "ready"


def test_a_key_may_be_for_an_adapter_alone(node: Node, client_of: Callable[..., OpenAI]):
    """The last one here: from now on this node wants keys."""
    narrow = client_of(node, node.create_key("acme", models=["tiny:pirate"])["key"])
    wide = client_of(node, node.create_key("acme", models=["gpt-4o-mini"])["key"])

    assert [model.id for model in narrow.models.list()] == ["tiny:pirate"]
    assert answer(narrow, "pirate") == answer(wide, "tiny:pirate")
    for name in ("tiny", "tiny:clerk"):
        with pytest.raises(openai.PermissionDeniedError):
            answer(narrow, name)
    eventually(lambda: all(not row["requests"] for row in rows(node).values()), "held for ever")
