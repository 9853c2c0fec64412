"""Bodies of /v1/decisions: what is asked of the model, and what is refused with its name."""

import json
from typing import Any

import pytest

from llmhost.api.decision_wire import parse_decision
from llmhost.core.errors import BadRequest
from llmhost.core.request import GenerationRequest

CHOICES = [{"value": "red"}, {"value": "green", "description": "like grass"}]
CHOICE = {"type": "choice", "instructions": "Which?", "choices": CHOICES}
SCORE = {"type": "score", "instructions": "How?", "levels": [{"label": "bad"}, {"label": "good"}]}
PREDICATE = {"type": "predicate", "instructions": "It is so."}
LEAST: dict[str, Any] = {"model": "m", "input": "hi", "questions": [PREDICATE]}


def parsed(**changes: Any) -> GenerationRequest:
    return parse_decision(json.dumps({**LEAST, **changes}).encode(), "req_1", "mine")[0]


def test_each_question_is_told_with_the_answers_that_there_are() -> None:
    predicate, choice, score = parsed(questions=[PREDICATE, CHOICE, SCORE]).questions

    assert predicate.answers == ("Yes", "No")
    assert predicate.text.endswith("It is so.")
    assert choice.answers == ("red", "green")
    assert choice.text.endswith("- red\n- green: like grass")
    assert score.answers == ("bad", "good")


def test_a_text_that_a_boolean_is_spelled_like_is_told_apart() -> None:
    values: list[dict[str, Any]] = [{"value": True}, {"value": "true"}, {"value": "false"}]
    (question,) = parsed(questions=[{**CHOICE, "choices": values}]).questions
    assert question.answers == ("true", '"true"', "false")


def test_an_input_is_a_text_or_items() -> None:
    data = {"type": "input_json", "data": {"a": [1, {"b": None}]}}
    items = [
        {"role": "developer", "content": "Be exact."},
        {"role": "user", "content": [{"type": "input_text", "text": "Look:"}, data]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "done"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": "raw"},
        {
            "type": "custom_tool_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "x"}],
        },
    ]
    told = parsed(input=items).messages

    roles = ["developer", "user", "assistant", "assistant", "tool", "assistant", "tool"]
    assert [m["role"] for m in told] == roles
    assert told[1]["content"] == 'Look:\n{"a":[1,{"b":null}]}'
    assert told[2]["content"] == "No."
    assert told[4] == {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "done"}
    assert told[5]["tool_calls"][0]["function"]["arguments"] == '{"input":"raw"}'


def test_what_a_caller_wrote_is_seen_by_rules() -> None:
    text = parsed(input="alpha", questions=[CHOICE]).text
    assert all(word in text for word in ("alpha", "Which?", "like grass", "green"))


def deep(levels: int) -> dict[str, Any]:
    return {"a": deep(levels - 1)} if levels else {}


def json_part(data: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "input_json", "data": data}]}]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": None}, "model"),
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "reasoning"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"input": json_part(5)}, "input[0].content[0].data"),
        ({"input": json_part(deep(40))}, "input[0].content[0].data"),
        ({"input": json_part({"a": list(range(10_001))})}, "input[0].content[0].data"),
        ({"input": json_part({"a": "x" * 300_000})}, "input[0].content[0].data"),
        ({"questions": None}, "questions"),
        ({"questions": []}, "questions"),
        ({"questions": [PREDICATE] * 401}, "questions"),
        ({"questions": [PREDICATE, {"type": "guess"}]}, "questions[1].type"),
        ({"questions": [{"type": "predicate"}]}, "questions[0]"),
        ({"questions": [{**PREDICATE, "instructions": " "}]}, "questions[0].instructions"),
        ({"questions": [{"type": "choice", "instructions": "x"}]}, "questions[0].choices"),
        ({"questions": [{**CHOICE, "choices": CHOICES[:1]}]}, "questions[0].choices"),
        ({"questions": [{**CHOICE, "choices": [*CHOICES, CHOICES[0]]}]}, "questions[0].choices[2]"),
        ({"questions": [{**CHOICE, "choices": [{"value": f"{i}"} for i in range(256)]}]}, "questions[0].choices"),
        ({"questions": [{**SCORE, "levels": [{"label": ""}, {"label": "b"}]}]}, "questions[0].levels[0].label"),
        ({"questions": [{**CHOICE, "choices": [{"value": f"{i}"} for i in range(250)]}] * 17}, "questions"),
        ({"timeout_ms": 0}, "timeout_ms"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_its_name(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parsed(**changes)
    assert (caught.value.param or "").startswith(param)
