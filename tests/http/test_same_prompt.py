"""One conversation with tools by each API: the model is asked the same, token by token."""

import json
from typing import Any

import pytest
from server_process import Node

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
FACTS = {"name": "get_weather", "description": "Get the weather of a city."}
ARGUMENTS = {"city": "東京"}
CALL = {"name": "get_weather", "arguments": json.dumps(ARGUMENTS, ensure_ascii=False)}
ASK = {"role": "user", "content": "How is the weather in 東京?"}
RULE = "Be brief."


def chat(strict: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    call = {"id": "call_1", "type": "function", "function": CALL}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "Rain."}
    turns = [{"role": "assistant", "content": None, "tool_calls": [call]}, result]
    tool = {"type": "function", "function": {**FACTS, "parameters": SCHEMA, **strict}}
    messages = [{"role": "system", "content": RULE}, ASK, *turns]
    return "/v1/chat/completions", {"messages": messages, "tools": [tool], "max_tokens": 1}


def responses(strict: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    items = [
        ASK,
        {"type": "function_call", "call_id": "call_1", **CALL},
        {"type": "function_call_output", "call_id": "call_1", "output": "Rain."},
    ]
    tool = {"type": "function", **FACTS, "parameters": SCHEMA, **strict}
    body = {"input": items, "instructions": RULE, "tools": [tool], "max_output_tokens": 1}
    return "/v1/responses", body


def messages(strict: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    use = {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": ARGUMENTS}
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": "Rain."}
    turns = [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    tool = {**FACTS, "input_schema": SCHEMA, **strict}
    body = {"system": RULE, "messages": [ASK, *turns], "tools": [tool], "max_tokens": 1}
    return "/v1/messages", body


def ollama(strict: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    call = {"function": {"name": "get_weather", "arguments": ARGUMENTS}}
    turns = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "get_weather", "content": "Rain."},
    ]
    tool = {"type": "function", "function": {**FACTS, "parameters": SCHEMA, **strict}}
    asked = [{"role": "system", "content": RULE}, ASK, *turns]
    limit = {"options": {"num_predict": 1}, "stream": False}
    return "/api/chat", {"messages": asked, "tools": [tool], **limit}


def prompt_tokens(answer: dict[str, Any]) -> int:
    usage = answer.get("usage", answer)
    names = ("prompt_tokens", "prompt_eval_count")
    whole = next((usage[name] for name in names if name in usage), None)
    return whole or usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)


@pytest.mark.parametrize("strict", [{}, {"strict": False}, {"strict": True}], ids=str)
def test_each_route_asks_the_model_the_same(tiny_node: Node, strict: dict[str, Any]) -> None:
    told = {}
    for write in (chat, responses, messages, ollama):
        path, body = write(strict)
        answer = tiny_node.post(path, {"model": "tiny", "temperature": 0, **body})
        assert answer.status_code == 200, answer.text
        told[path] = prompt_tokens(answer.json())

    as_text = tiny_node.post("/tokenize", {"model": "tiny", **chat({})[1]}).json()
    assert set(told.values()) == {as_text["count"]}, told
