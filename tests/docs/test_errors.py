"""docs/errors.md has every error as the code has it, and docs/api.md what the wire does with every parameter."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmhost.api.bodies import ChatBody, CompletionBody, StreamOptions
from llmhost.api.messages_bodies import MessagesBody
from llmhost.api.openai import parse_chat, parse_completion
from llmhost.api.pooling import POOLING
from llmhost.api.tokenize import TOKEN_ROUTES
from llmhost.core.errors import AlreadyRunning, ConfigError, LlmhostError, UnsupportedParameter
from llmhost.core.request import GenerationRequest
from llmhost.storage.connect import StorageFailed
from llmhost.testing import make_host

ROOT = Path(__file__).parents[2]
ERRORS = (ROOT / "docs" / "errors.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()
OFF_THE_WIRE = {ConfigError, AlreadyRunning}


def tree(kind: type[LlmhostError]) -> Iterator[type[LlmhostError]]:
    """The classes of core/errors.py; what a package derives for itself has the same facts."""
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == LlmhostError.__module__:
            yield from tree(child)


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_every_error_is_in_the_table_with_its_status_type_and_code():
    row = r"^\| `(\w+)` \| (\d+) \| `(\w+)` \| (?:`(\w+)`|null) \|"
    rows = re.findall(row, section(ERRORS, "On the wire"), re.MULTILINE)

    assert sorted(rows) == sorted(
        (kind.__name__, str(kind.status), kind.type, kind.code or "")
        for kind in {*tree(LlmhostError), StorageFailed} - OFF_THE_WIRE
    )


def test_errors_of_commands_are_in_their_own_table():
    rows = re.findall(
        r"^\| `(\w+)` \| `(\w+)` \|", section(ERRORS, "On the command line"), re.MULTILINE
    )

    assert rows == [("ConfigError", ConfigError.code), ("AlreadyRunning", AlreadyRunning.code)]


def test_every_error_says_when_it_comes_and_what_to_do():
    rows = [line for line in ERRORS.splitlines() if re.match(r"\| `[A-Z]\w+` \|", line)]

    assert all(cell.strip() for row in rows for cell in row.strip("|").split("|"))


async def test_the_example_is_what_the_server_says():
    example, anthropics = re.findall(r"```json\n(.+?)```", ERRORS, re.DOTALL)
    body = {"model": "tinny", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    async with make_host() as host:
        response = await host.chat("hello", model="tinny")
        message = (await host.client.post("/v1/messages", json=body)).json()

    assert response.status_code == 404
    assert response.json()["error"].keys() == json.loads(example)["error"].keys()
    assert response.json()["error"]["code"] == json.loads(example)["error"]["code"]
    shown = json.loads(anthropics)
    assert message.keys() == shown.keys()
    assert message["error"].keys() == shown["error"].keys()
    assert message["error"]["details"] == shown["error"]["details"]


# -- docs/api.md ----------------------------------------------------------------------------------------------------

ROUTE = r"^\| ([A-Z, ]+) \| `(/[^`]+)` \|"


async def test_the_routes_are_those_of_the_application():
    async with make_host() as host:
        schema = (await host.client.get("/schema")).json()
    described = {
        (method.upper(), path) for path, methods in schema["paths"].items() for method in methods
    }
    whole = ("/v1/chat/completions", "/v1/completions", "/v1/estimate")
    messages = ("/v1/messages", "/v1/messages/count_tokens")
    tokens = (f"{v1}/{name}" for v1 in ("", "/v1") for name in TOKEN_ROUTES)
    responses = ("/v1/responses",)
    paths = (*whole, *messages, *responses, *(p for r in POOLING for p in r.paths), *tokens)
    hot = {("POST", path) for path in paths}

    table = re.findall(ROUTE, section(API, "Routes"), re.MULTILINE)
    documented = {(method, path) for methods, path in table for method in methods.split(", ")}

    assert documented == described | hot


PARAMETERS = re.findall(
    r"^\| `(\w+)` \| (both|chat|completions) \| (\w+) \|",
    section(API, "Request parameters"),
    re.MULTILINE,
)
ROUTES = {"chat": ("chat",), "completions": ("completions",), "both": ("chat", "completions")}
STATES = {(name, route): state for name, on, state in PARAMETERS for route in ROUTES[on]}
BODIES = {"chat": ChatBody, "completions": CompletionBody}
LEAST: dict[str, dict[str, Any]] = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "completions": {"model": "m", "prompt": "hi"},
}

WANTED: dict[str, Any] = {
    "model": "other",
    "messages": [{"role": "user", "content": "ho"}],
    "prompt": "ho",
    "max_tokens": 7,
    "max_completion_tokens": 7,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "seed": 5,
    "n": 2,
    "stop": ["x"],
    "ignore_eos": True,
    "priority": 1,
    "stream": True,
    "chat_template_kwargs": {"enable_thinking": False},
    "user": "somebody",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "functions": [{"name": "f"}],
    "response_format": {"type": "json_object"},
    "top_logprobs": 2,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "logit_bias": {"5": 1.0},
    "modalities": ["audio"],
    "audio": {"voice": "any"},
    "echo": True,
    "suffix": "end",
    "best_of": 3,
    "repetition_penalty": 1.1,
    "min_p": 0.1,
    "min_tokens": 3,
    "stop_token_ids": [7],
    "structured_outputs": {"regex": "a+"},
    "guided_json": {"type": "object"},
    "guided_regex": "a+",
    "guided_choice": ["a"],
    "guided_grammar": 'start: "a"',
    "guided_whitespace_pattern": " ",
    "reasoning_effort": "high",
    "include_reasoning": False,
    "function_call": "auto",
    "bad_words": ["x"],
    "allowed_token_ids": [7],
    "prompt_logprobs": 2,
    "return_token_ids": True,
    "include_cost": True,
    "service_tier": "flex",
    "timeout_ms": 1000,
    "cache_salt": "mine",
    "add_generation_prompt": False,
    "continue_final_message": True,
    "truncate_prompt_tokens": 5,
}
"""A value of each parameter that asks for something else than what happens without it."""


CALLING = {"tools": WANTED["tools"], "tool_choice": "required", "parallel_tool_calls": False}
"""Each of them is said beside the others."""


def wanted(name: str, route: str) -> dict[str, Any]:
    if name == "logprobs":
        return {name: True if route == "chat" else 1}
    if name == "stream_options":
        return {name: {"include_usage": True}, "stream": True}
    if name == "top_logprobs":
        return {name: WANTED[name], "logprobs": True}
    if name in CALLING:
        return {"tools": WANTED["tools"], "tool_choice": "required", name: CALLING[name]}
    if name == "add_special_tokens":
        return {name: route == "chat"}
    return {name: WANTED[name]}


def parsed(route: str, **more: Any) -> tuple[GenerationRequest, StreamOptions]:
    parse = parse_chat if route == "chat" else parse_completion
    request, options = parse(json.dumps({**LEAST[route], **more}).encode(), "r", None)
    return replace(request, user=None), options


@pytest.mark.parametrize("route", BODIES)
def test_the_table_has_every_parameter_of_the_wire_and_no_other(route: str):
    known = {field.encode_name for field in msgspec.structs.fields(BODIES[route])}

    assert {name for name, on in STATES if on == route} == known


def test_no_parameter_is_there_twice():
    assert len(STATES) == sum(len(ROUTES[on]) for _, on, _ in PARAMETERS)


@pytest.mark.parametrize(("name", "route"), STATES)
def test_a_parameter_does_what_the_table_says(name: str, route: str):
    asked = wanted(name, route)
    match STATES[name, route]:
        case "honoured":
            less = {other: value for other, value in asked.items() if other != name}
            less = {} if name in ("tools", "tool_choice") else less
            assert parsed(route, **asked) != parsed(route, **less)
        case "ignored":
            assert parsed(route, **asked) == parsed(route)
        case "refused":
            with pytest.raises(UnsupportedParameter) as refusal:
                parsed(route, **asked)
            assert refusal.value.param == name
        case state:
            pytest.fail(f"{name} is {state}")


def test_the_table_of_anthropics_parameters_has_those_of_the_wire() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (?:honoured|ignored|refused) \|",
        section(API, "Anthropic's messages"),
        re.MULTILINE,
    )

    known = {field.encode_name for field in msgspec.structs.fields(MessagesBody)}
    assert sorted(rows) == sorted(known)


FINE = {
    ("logprobs", "chat"): False,
    ("top_logprobs", "chat"): 0,
    ("tools", "chat"): [],
    ("functions", "chat"): [],
    ("response_format", "chat"): {"type": "text"},
    ("modalities", "chat"): ["text"],
    ("frequency_penalty", "chat"): 0,
    ("presence_penalty", "chat"): 0,
    ("logit_bias", "chat"): {},
    ("echo", "completions"): False,
    ("suffix", "completions"): "",
    ("best_of", "completions"): 1,
    ("repetition_penalty", "chat"): 1,
    ("min_p", "chat"): 0,
    ("min_tokens", "chat"): 0,
    ("stop_token_ids", "chat"): [],
    ("structured_outputs", "chat"): {},
}
"""What asks for what happens anyway, as the notes say."""


@pytest.mark.parametrize(("name", "route"), FINE)
def test_a_value_that_changes_nothing_is_fine(name: str, route: str):
    assert parsed(route, **{name: FINE[name, route]}) == parsed(route)


def test_tools_are_ignored_where_none_may_be_called():
    assert parsed("chat", tools=WANTED["tools"], tool_choice="none") == parsed("chat")


def test_an_unknown_parameter_is_ignored():
    assert parsed("chat", x_vendor_extra="high") == parsed("chat")
