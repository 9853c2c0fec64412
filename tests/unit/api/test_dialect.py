"""Errors in the words of the API whose route was asked."""

import json
from typing import Any

import pytest
from tests.docs.test_errors import ERRORS, section, tree

from llmhost.api.dialect import ANTHROPIC, OPENAI, anthropic_type, dialect_of
from llmhost.config.schema import Settings
from llmhost.config.schema.server import ServerSettings
from llmhost.core.errors import (
    ConfigError,
    ContextTooLong,
    InvalidTool,
    LlmhostError,
    Overloaded,
    QuotaExhausted,
    UnknownModel,
)
from llmhost.testing import make_host


@pytest.mark.parametrize(
    ("path", "is_anthropic"),
    [
        ("/v1/messages", True),
        ("/v1/messages/", True),
        ("/v1/messages/count_tokens", True),
        ("/v1/messages/batches", True),
        ("/v1/messagess", False),
        ("/v1/models", False),
        ("/", False),
    ],
)
def test_the_path_says_whose_words_are_meant(path: str, is_anthropic: bool) -> None:
    scope: Any = {"path": path}

    assert (dialect_of(scope) is ANTHROPIC) == is_anthropic


def test_a_body_has_type_message_code_and_the_request() -> None:
    body = json.loads(ANTHROPIC.error_body(UnknownModel("m"), "req_1"))

    assert body["type"] == "error"
    assert body["request_id"] == "req_1"
    assert body["error"]["type"] == "not_found_error"
    assert "'m' does not exist" in body["error"]["message"]
    assert body["error"]["details"] == {"error_code": "model_not_found", "param": "model"}


def test_what_has_no_code_has_no_details() -> None:
    assert "details" not in json.loads(ANTHROPIC.error_body(LlmhostError("x")))["error"]


def test_a_prompt_that_is_too_long_is_told_in_the_words_that_agents_look_for() -> None:
    error = ContextTooLong(prompt_tokens=92, max_tokens=None, limit_tokens=64, param="messages")

    body = json.loads(ANTHROPIC.error_body(error))

    assert body["error"]["message"] == "prompt is too long: 92 tokens > 63 maximum"


def test_a_tools_schema_is_named_as_it_was_sent() -> None:
    error = InvalidTool("x", param="tools[1].function.parameters")

    details = json.loads(ANTHROPIC.error_body(error))["error"]["details"]

    assert details["param"] == "tools[1].input_schema"


def test_events_of_errors_have_a_name_where_the_api_names_its_events() -> None:
    error = Overloaded("x")

    assert ANTHROPIC.error_event(error, "r").startswith(b'event: error\ndata: {"type":"error"')
    assert OPENAI.error_event(error, "r") == b"data: " + OPENAI.error_body(error) + b"\n\n"


def test_a_budget_without_room_is_no_rate_limit() -> None:
    assert anthropic_type(QuotaExhausted) == "billing_error"


def test_the_types_are_those_of_the_documentation() -> None:
    named = {}
    for line in section(ERRORS, "On Anthropic's routes").splitlines():
        if line.startswith("| `"):
            name, kinds = line.strip("|").split("|")[:2]
            named |= {kind.strip(" `"): name.strip(" `") for kind in kinds.split(",")}

    on_the_wire = {
        kind for kind in tree(LlmhostError) if kind.status >= 400 and kind is not ConfigError
    }
    for kind in on_the_wire:
        documented = next(named[k.__name__] for k in kind.__mro__ if k.__name__ in named)
        assert anthropic_type(kind) == documented, kind


async def test_refusals_before_a_route_is_reached_have_the_dialect_too() -> None:
    settings = Settings(server=ServerSettings(drain_timeout_s=5.0))
    async with make_host(settings=settings) as host:
        elsewhere = await host.client.post("/v1/messages", headers={"host": "evil.example"})
        unknown = await host.client.post("/v1/messages/unheard/of", json={})

    for answer, kind in ((elsewhere, "permission_error"), (unknown, "not_found_error")):
        assert answer.json()["error"]["type"] == kind
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
