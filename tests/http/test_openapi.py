"""The OpenAPI document of a real server against what that server does. `make bars` asks some thousand times."""

from collections.abc import Iterator
from typing import Any

import pytest
from server_process import Node
from strictly import strictly
from truth import MODELS, Truth

from llmhost.api.openapi.answers import ChatCompletion
from llmhost.api.openapi.message_answers import MessageAnswer

ASK: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
}
ASKED_MOST = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"}
PLACE = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}}


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Truth]:
    node = Node(tmp_path_factory.mktemp("truth"), MODELS)
    try:
        yield Truth(node.start())
        assert "Traceback" not in node.log()
    finally:
        node.close()


@pytest.mark.filterwarnings("ignore")  # of the generator's own
def test_the_server_does_what_its_document_says(truth: Truth) -> None:
    for operation in truth.operations():
        truth.ask(operation, 2 if operation.path in ASKED_MOST else 1)

    assert truth.failures == []
    assert len(truth.asked) > 60


def test_calls_are_as_described(tiny_node: Node) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": PLACE}}
    body = {**ASK, "tools": [tool], "tool_choice": "required"}
    answer = strictly(ChatCompletion, tiny_node.post("/v1/chat/completions", body).content)
    assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"


def test_blocks_are_as_described(tiny_node: Node) -> None:
    tool = {"name": "get_weather", "input_schema": PLACE}
    body = {**ASK, "tools": [tool], "tool_choice": {"type": "any"}, "include_cost": True}
    answer = strictly(MessageAnswer, tiny_node.post("/v1/messages", body).content)
    assert answer.content[-1].name == "get_weather"
