"""Anthropic's requests: what they become, and what is wrong with others."""

import json
from typing import Any

import pytest

from llmhost.api.messages_turns import BETWEEN_BLOCKS
from llmhost.api.messages_wire import parse_count, parse_messages
from llmhost.api.structured import MAX_FORM_BYTES
from llmhost.api.wire import MAX_LOOSE_SIGNS
from llmhost.core.errors import BadRequest
from llmhost.core.request import GenerationRequest

ASK = {"role": "user", "content": "hi"}
TOOL = {"name": "now", "description": "d", "input_schema": {"type": "object", "properties": {}}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {"zone": "UTC"}}
INVALID, UNSUPPORTED, MISSING = (
    *("invalid_value", "unsupported_parameter"),
    "missing_required_parameter",
)


def parsed(*turns: Any, **fields: Any) -> GenerationRequest:
    body = {"model": "m", "max_tokens": 5, "messages": turns or [ASK], **fields}
    return parse_messages(json.dumps(body).encode(), "req_1", None)[0]


def refusal(*turns: Any, **fields: Any) -> tuple[str | None, str | None]:
    with pytest.raises(BadRequest) as refused:
        parsed(*turns, **fields)
    return refused.value.code, refused.value.param


def result(content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": content, **more}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said, "cache_control": {"type": "ephemeral"}}


def test_parameters_become_what_they_mean() -> None:
    request = parsed(
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        stop_sequences=["x"],
        stream=True,
        metadata={"user_id": "u"},
        seed=3,
        priority=2,
        timeout_ms=100,
        cache_salt="mine",
        include_cost=True,
        service_tier="standard_only",
        betas=["a"],
    )

    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (
        0.5,
        0.25,
        7,
        3,
    )
    assert (request.stop, request.stream, request.user) == (("x",), True, "u")
    assert (request.max_tokens, request.takes_less) == (5, True)
    assert (request.priority, request.timeout_ms, request.cache_salt) == (2, 100, "mine")
    assert request.include_cost


@pytest.mark.parametrize("value", [None, 0])
def test_without_top_k_all_tokens_are_drawn(value: int | None) -> None:
    assert parsed(top_k=value) == parsed()


def test_the_system_prompt_comes_first_and_joins_its_blocks() -> None:
    assert parsed(system="be kind").messages[0] == {"role": "system", "content": "be kind"}
    assert parsed(system=[text("a"), text("b")]).messages[0]["content"] == f"a{BETWEEN_BLOCKS}b"
    assert parsed(system=[]).messages == parsed(system="").messages == (ASK,)


def test_a_system_message_amid_others_keeps_its_place() -> None:
    later = {"role": "system", "content": "be brief"}

    assert parsed(ASK, later, ASK).messages == (ASK, later, ASK)
    assert parsed(later, ASK, system="a").messages[0]["content"] == f"a{BETWEEN_BLOCKS}be brief"


def test_neighbours_of_one_role_are_one_turn() -> None:
    one = {"role": "assistant", "content": "Well"}
    other = {"role": "assistant", "content": [text(", yes")]}

    messages = parsed(ASK, ASK, one, other, ASK).messages

    assert messages == (
        {"role": "user", "content": f"hi{BETWEEN_BLOCKS}hi"},
        {"role": "assistant", "content": "Well, yes"},
        ASK,
    )


def test_calls_thoughts_and_results_are_told_as_templates_know_them() -> None:
    thoughts = {"type": "thinking", "thinking": "hm", "signature": "s"}
    hidden = {"type": "redacted_thinking", "data": "secret"}

    messages = parsed(
        ASK,
        {"role": "assistant", "content": [thoughts, hidden, text("Let me see."), USE]},
        {"role": "user", "content": [result([text("noon")]), text("So?")]},
    ).messages

    call = {"name": "now", "arguments": '{"zone": "UTC"}'}
    assert messages[1:] == (
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "toolu_1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "noon", "name": "now"},
        {"role": "user", "content": "So?"},
    )


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (result("noon"), "noon"),
        (result(None), ""),
        (result([]), ""),
        (result("no clock", is_error=True), "Error: no clock"),
    ],
)
def test_a_result_is_text_and_a_failed_one_says_so(block: dict[str, Any], said: str) -> None:
    messages = parsed(ASK, {"role": "user", "content": [block]}).messages

    assert messages[-1] == {"role": "tool", "tool_call_id": "toolu_1", "content": said}


def test_an_answer_that_was_begun_is_gone_on_with() -> None:
    begun = parsed(ASK, {"role": "assistant", "content": "Once"})
    called = parsed(ASK, {"role": "assistant", "content": [USE]})
    empty = parsed(ASK, {"role": "assistant", "content": ""})

    assert (begun.continue_final_message, begun.add_generation_prompt) == (True, False)
    assert (called.continue_final_message, called.add_generation_prompt) == (False, True)
    assert empty == parsed(ASK)


def test_tools_may_be_called_unless_the_choice_says_otherwise() -> None:
    def choice(kind: str, **more: Any) -> GenerationRequest:
        return parsed(tools=[TOOL], tool_choice={"type": kind, **more})

    free, required, named, none = (
        parsed(tools=[TOOL]),
        choice("any"),
        choice("tool", name="now"),
        choice("none"),
    )

    assert free.may_call and free.grammar is None
    assert free == choice("auto")
    assert free.tools is not None and free.tools[0]["function"] == {
        "name": "now",
        "description": "d",
        "parameters": TOOL["input_schema"],
    }
    assert required.grammar is not None and json.loads(required.grammar.text)["many"] is True
    assert named.grammar is not None and json.loads(named.grammar.text)["many"] is False
    assert none.tools is None and none.grammar is None and not none.may_call


def test_one_call_at_most_where_parallel_ones_are_switched_off() -> None:
    one = {"disable_parallel_tool_use": True}

    free = parsed(tools=[TOOL], tool_choice={"type": "auto", **one})
    required = parsed(tools=[TOOL], tool_choice={"type": "any", **one})

    assert free.most_calls == 1
    assert required.grammar is not None and json.loads(required.grammar.text)["many"] is False


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_a_format_is_enforced(field: str) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}

    grammar = parsed(**{field: {"format": form} if field == "output_config" else form}).grammar

    assert grammar is not None
    assert (grammar.kind, json.loads(grammar.text)) == ("json_schema", {"type": "object"})
    assert grammar.is_strict


def test_thinking_is_switched_in_the_template() -> None:
    on = parsed(thinking={"type": "enabled", "budget_tokens": 1024}).template_kwargs
    off = parsed(thinking={"type": "disabled"}).template_kwargs

    assert on == {"enable_thinking": True, "thinking": True}
    assert off == {"enable_thinking": False, "thinking": False}
    assert parsed(thinking={"type": "adaptive", "display": "omitted"}).hides_thoughts
    assert parsed(output_config={"effort": "low"}).template_kwargs == {"reasoning_effort": "low"}
    assert parsed().template_kwargs == {}


def test_a_prompt_is_counted_without_a_length_of_its_answer() -> None:
    body = json.dumps({"model": "m", "messages": [ASK], "tools": [TOOL]}).encode()

    assert parse_count(body, "r", None)[0].max_tokens is None
    with pytest.raises(BadRequest) as refused:
        parse_messages(body, "r", None)
    assert refused.value.param == "max_tokens"


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def model(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


@pytest.mark.parametrize(
    ("turn", "code", "at"),
    [
        (user({"type": "image", "source": {}}), UNSUPPORTED, "content[0].type"),
        (user(text("a"), {"type": "document", "source": {}}), MISSING, "content[1].source.type"),
        (user({"type": "server_tool_use", "name": "w"}), UNSUPPORTED, "content[0].type"),
        (user(result([{"type": "image"}])), UNSUPPORTED, "content[0].content[0].type"),
        (user({"type": "text"}), INVALID, "content[0].text"),
        (user(USE), INVALID, "content[0].type"),
        (user({"type": "thinking", "thinking": "x"}), INVALID, "content[0].type"),
        (user({"type": "tool_result", "content": "x"}), INVALID, "content[0].tool_use_id"),
        (user(result(5)), INVALID, "content[0].content"),
        (model(result("x")), INVALID, "content[0].type"),
        (model({"type": "thinking"}), INVALID, "content[0].thinking"),
        (model({**USE, "id": None}), INVALID, "content[0].id"),
        (model({**USE, "name": None}), INVALID, "content[0].name"),
        (model({**USE, "input": "x"}), INVALID, "content[0].input"),
        (model({**USE, "input": [0] * MAX_LOOSE_SIGNS}), INVALID, "content[0].input"),
        (model({**USE, "input": {"a": [0] * MAX_LOOSE_SIGNS}}), INVALID, "content[0].input"),
    ],
)
def test_a_block_that_can_not_be_is_refused_by_its_place(
    turn: dict[str, Any], code: str, at: str
) -> None:
    assert refusal(ASK, turn) == (code, f"messages[1].{at}")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"model": None}, MISSING, "model"),
        ({"messages": None}, MISSING, "messages"),
        ({"messages": []}, INVALID, "messages"),
        ({"messages": [{"role": "assistant", "content": ""}]}, INVALID, "messages"),
        ({"messages": [{"role": "tool", "content": ""}]}, INVALID, "messages[0].role"),
        ({"max_tokens": -1}, INVALID, "max_tokens"),
        ({"max_tokens": None}, MISSING, "max_tokens"),
        ({"temperature": 3}, INVALID, "temperature"),
        ({"top_k": -1}, INVALID, "top_k"),
        ({"stop_sequences": [""]}, INVALID, "stop_sequences"),
        ({"stop_sequences": ["x"] * 17}, INVALID, "stop_sequences"),
        ({"system": [{"type": "image"}]}, UNSUPPORTED, "system[0].type"),
        ({"service_tier": "best"}, INVALID, "service_tier"),
        ({"thinking": {"type": "hard"}}, INVALID, "thinking.type"),
        ({"mcp_servers": [{"url": "x"}]}, UNSUPPORTED, "mcp_servers"),
        ({"container": "c"}, UNSUPPORTED, "container"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, UNSUPPORTED, "tools[0].type"),
        ({"tools": [TOOL, {"type": "mcp_toolset"}]}, UNSUPPORTED, "tools[1].type"),
        ({"tools": [{"input_schema": {}}]}, MISSING, "tools[0].name"),
        ({"tools": [{"name": "now"}]}, MISSING, "tools[0].input_schema"),
        ({"tools": [{**TOOL, "description": "x" * MAX_FORM_BYTES}]}, INVALID, "tools"),
        ({"tool_choice": {"type": "any"}}, INVALID, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, MISSING, "tool_choice.name"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "then"}},
            *(INVALID, "tool_choice"),
        ),
        ({"output_format": {"type": "text"}}, UNSUPPORTED, "output_format.type"),
        (
            {"output_config": {"format": {"type": "json_schema"}}},
            *(MISSING, "output_config.format.schema"),
        ),
    ],
)
def test_what_can_not_be_is_refused_by_name(fields: dict[str, Any], code: str, param: str) -> None:
    assert refusal(**fields) == (code, param)


@pytest.mark.parametrize(
    ("turn", "at"),
    [
        (
            b'{"role":"user","content":[{"type":"tool_result","tool_use_id":"a","content":"\xff"}]}',
            0,
        ),
        (
            b'{"role":"user","content":[{"type":"tool_result","tool_use_id":"a","content":[{"type":"\xff"}]}]}',
            0,
        ),
    ],
)
def test_what_is_no_text_at_all_is_refused_by_its_place(turn: bytes, at: int) -> None:
    raw = b'{"model":"m","max_tokens":1,"messages":[' + turn + b"]}"

    with pytest.raises(BadRequest) as refused:
        parse_messages(raw, "r", None)

    assert refused.value.param == f"messages[0].content[{at}].content"


def test_a_request_as_coding_agents_send_it_is_taken() -> None:
    kept = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"file_path": {"type": "string"}},
        "required": ["file_path"],
        "additionalProperties": False,
    }
    request = parsed(
        user({"type": "text", "text": "<system-reminder>x</system-reminder>"}, text("Fix it.")),
        model(
            {"type": "thinking", "thinking": "", "signature": "EqQB"},
            {"type": "tool_use", "id": "toolu_2", "name": "Read", "input": {"file_path": "a"}},
        ),
        user({**result("1\tx"), "tool_use_id": "toolu_2", **kept}),
        {"role": "system", "content": "The user is away."},
        system=[{"type": "text", "text": "You are an agent.", **kept}],
        max_tokens=32_000,
        stream=True,
        temperature=1,
        tools=[{"name": "Read", "description": "d", "input_schema": schema, "defer_loading": True}],
        thinking={"type": "adaptive"},
        output_config={"effort": "medium"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        metadata={"user_id": "user_1_account__session_2"},
    )

    assert [message["role"] for message in request.messages] == [
        *("system", "user", "assistant", "tool", "system"),
    ]
    assert request.may_call
    assert not request.continue_final_message


def test_what_changes_nothing_is_read_over() -> None:
    extras = {"mcp_servers": [], "container": None, "cache_control": {"type": "ephemeral"}}

    assert parsed(**extras, context_management={"edits": []}) == parsed()


def test_blocks_without_number_are_put_together_once() -> None:
    """Adding each to what came before would copy it as often."""
    turns = [{"role": "user", "content": [text("a" * 40)] * 30_000}]
    thinking = {"type": "thinking", "thinking": "b", "signature": "s"}
    turns.append({"role": "assistant", "content": [thinking, text("c"), thinking, text("d")]})

    request = parsed(*turns)

    assert len(request.messages[0]["content"]) == 30_000 * 42 - 2
    assert request.messages[1] == {
        "role": "assistant",
        "content": "cd",
        "reasoning_content": "bb",
    }
