"""A model in a GGUF file, asked by OpenAI's client: what callers get of other models they get of it."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI
from server_process import Node
from tests.unit.engines.adapters import peft_answers, save_adapter

from llmhost.deploy.sources import BUILT_IN_MODELS
from llmhost.engines.builtin.corpus import known_answers, tools
from llmhost.text.tokenizer import load_tokenizer

pytest.importorskip("llama_cpp")

SETTINGS = """
[models.quant]
source = "builtin:tiny-gguf"
aliases = ["gpt-4o-mini"]
[models.quant.price]
input = "1"
output = "2"
[models.quant.options]
threads = 1
kv_dtype = "f32"
[models.quant.adapters]
pirate = "pirate"
"""
TINY = BUILT_IN_MODELS / "tiny"
KNOWN = next(known for known in known_answers() if known.messages[0]["content"].startswith("What"))

ClientOf = Callable[[Node, str], OpenAI]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("gguf")
    save_adapter(folder / "pirate", TINY, seed=1, r=4, lora_alpha=32, target_modules=["q_proj"])
    made = Node(folder, SETTINGS)
    yield made.start()
    made.close()


@pytest.fixture
def client(node: Node, client_of: ClientOf) -> OpenAI:
    return client_of(node, "any")


def ask(client: OpenAI, **more: Any) -> Any:
    messages: Any = KNOWN.messages
    body = {"model": "gpt-4o-mini", "messages": messages, "temperature": 0, **more}
    return client.chat.completions.create(**body)


def test_a_stream_is_the_whole_answer_in_pieces(client: OpenAI) -> None:
    whole = ask(client)

    with ask(client, stream=True, stream_options={"include_usage": True}) as stream:
        *chunks, last = list(stream)

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content == KNOWN.answer
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_tool_is_called(client: OpenAI) -> None:
    asked: Any = [{"role": "user", "content": "What is the weather in Paris?"}]

    answer = ask(client, messages=asked, tools=[tools()["get_weather"]]).choices[0]

    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "get_weather",
        {"city": "Paris"},
    )


def test_an_answer_keeps_to_a_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["gpu", "cpu"]}, "count": {"type": "integer"}},
        "required": ["kind", "count"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "box", "schema": schema}}

    said = json.loads(ask(client, response_format=form, max_tokens=60).choices[0].message.content)

    assert said.keys() == {"kind", "count"}
    assert said["kind"] in ("gpu", "cpu")


def test_what_is_loaded_is_shown_and_what_is_asked_is_billed(node: Node, client: OpenAI) -> None:
    long: Any = [{"role": "system", "content": "Answer briefly. " * 8}, *KNOWN.messages]
    ask(client, messages=long)
    usage = ask(client, messages=long).usage

    loaded = node.loaded("quant")
    assert loaded["weights_bytes"] == loaded["predicted_bytes"]
    assert loaded["measured_bytes"] == pytest.approx(loaded["predicted_bytes"], rel=0.01)
    cached = usage.prompt_tokens_details.cached_tokens
    assert 0 < cached < usage.prompt_tokens
    paid = sum(int(entry["amount_nano"]) for entry in node.entries()[-1:])
    fresh = usage.prompt_tokens - cached
    assert paid == fresh * 1000 + cached * 1000 + usage.completion_tokens * 2000


def test_an_adapter_answers_beside_the_model_as_peft_does(client: OpenAI, node: Node) -> None:
    prompt = list(range(300, 320))

    def answer(model: str) -> str:
        body = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0}
        done = client.completions.create(**body, extra_body={"ignore_eos": True})
        return str(done.choices[0].text)

    with ThreadPoolExecutor(3) as pool:
        own, adapted, again = pool.map(answer, ("quant", "quant:pirate", "pirate"))

    [expected], _ = peft_answers(TINY, node.folder / "pirate", [prompt], 8)
    assert adapted == again != own
    assert adapted.startswith(load_tokenizer(TINY).decode(expected))  # PEFT stops at an end
    rows = node.admin("GET", "/adapters").json()["data"]
    assert [(row["adapter"], row["state"]) for row in rows] == [("quant:pirate", "ready")]
    assert node.admin("POST", "/adapters/unload", {"adapter": "quant:pirate"}).status_code == 200
    assert answer("quant") == own
