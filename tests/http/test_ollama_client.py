"""Ollama's own Python client against a real server."""

from collections.abc import Iterator
from typing import Any

import pytest
from server_process import Node

ollama = pytest.importorskip("ollama")

ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
SHORT = {"num_predict": 5}
PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}},
    "required": ["city"],
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": PLACE}}


@pytest.fixture(scope="module")
def client(open_node: Node) -> Iterator[Any]:
    yield from _client(open_node)


@pytest.fixture(scope="module")
def tiny(tiny_node: Node) -> Iterator[Any]:
    yield from _client(tiny_node)


def _client(node: Node) -> Iterator[Any]:
    made = ollama.Client(host=node.url)
    yield made
    made._client.close()


def test_a_chat_is_the_same_whole_and_streamed(client: Any) -> None:
    whole = client.chat("echo", ASK, options=SHORT)
    parts = list(client.chat("echo", ASK, options=SHORT, stream=True))

    assert "".join(part.message.content for part in parts) == whole.message.content
    assert (whole.done_reason, whole.eval_count) == ("length", 5)
    assert (parts[-1].done, parts[-1].eval_count) == (True, 5)


def test_a_prompt_is_gone_on_with(client: Any) -> None:
    whole = client.generate("echo", "say", options=SHORT)
    parts = list(client.generate("echo", "say", options=SHORT, stream=True))

    assert "".join(part.response for part in parts) == whole.response


def test_texts_become_vectors(client: Any) -> None:
    found = client.embed("embedder", ["one", "two"])
    older = client.embeddings("embedder", "one")

    assert len(found.embeddings) == 2
    assert len(older.embedding) == len(found.embeddings[0])


def test_models_are_listed_shown_and_seen_at_work(client: Any) -> None:
    client.chat("echo", ASK, options=SHORT)

    assert "echo:latest" in [model.model for model in client.list().models]
    assert "echo:latest" in [model.model for model in client.ps().models]
    assert "completion" in client.show("echo").capabilities


def test_a_wrong_name_is_an_error_that_clients_know(client: Any) -> None:
    with pytest.raises(ollama.ResponseError, match="not found") as error:
        client.chat("nobody", ASK)
    assert error.value.status_code == 404

    with pytest.raises(ollama.ResponseError, match="can't be pulled"):
        client.pull("llama3")
    assert client.pull("echo").status == "success"
    assert [each.status for each in client.pull("echo", stream=True)] == ["success"]


def test_a_real_model_calls_a_tool_and_answers_in_a_form(tiny: Any) -> None:
    options = {"temperature": 0, "num_predict": 80}
    called = tiny.chat("tiny", ASK, tools=[WEATHER], options=options)
    told = tiny.chat("tiny", ASK, format=PLACE, options=options)

    [call] = called.message.tool_calls
    assert call.function.name == "get_weather"
    assert "city" in call.function.arguments
    assert '"city"' in told.message.content
