"""Tools that the built-in model decides to call, as an agent built on the real client uses them."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI
from server_process import Node

from llmhost.engines.builtin.corpus import ToolDialogue, pairs, tool_dialogues, tools

SAMPLE = tool_dialogues()[:: len(tool_dialogues()) // 8]


@pytest.fixture
def tiny(tiny_node: Node, client_of: Callable[[Node, str], OpenAI]) -> OpenAI:
    return client_of(tiny_node, "any")


HALF = {"name": "f", "arguments": r'{"\udc00": "so \ud83d", "b": "\ud83d\ude00 \\\\ud83d"}'}
"""Valid JSON whose texts are no texts: somebody has cut them within a character."""
CALLED = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": HALF}]},
    {"role": "tool", "tool_call_id": "c", "content": "done"},
]
ITEMS = [
    {"role": "user", "content": "hi"},
    {"type": "function_call", "call_id": "c", **HALF},
    {"type": "function_call_output", "call_id": "c", "output": "done"},
]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": CALLED, "max_tokens": 2}),
        ("/v1/responses", {"input": ITEMS, "max_output_tokens": 2}),
        ("/tokenize", {"messages": CALLED}),
        ("/v1/estimate", {"messages": CALLED}),
    ],
)
def test_halves_of_characters_in_the_arguments_of_a_call_break_nothing(
    tiny_node: Node, path: str, body: dict[str, Any]
) -> None:
    answer = tiny_node.post(path, {"model": "tiny", **body})

    assert answer.status_code == 200, answer.text


def offered(dialogue: ToolDialogue, *, strict: bool = False) -> Any:
    listed = [tools()[name] for name in dialogue.tools]
    return [{**tool, "function": {**tool["function"], "strict": strict}} for tool in listed]


def asked(dialogue: ToolDialogue) -> Any:
    return [{"role": "user", "content": dialogue.questions[0]}]


def calls_of(message: Any) -> list[tuple[str, Any]]:
    listed = message.tool_calls or []
    return [(call.function.name, json.loads(call.function.arguments)) for call in listed]


@pytest.mark.parametrize("strict", [False, True])
def test_an_agent_gets_its_calls_and_then_its_answer(tiny: OpenAI, strict: bool) -> None:
    right = 0
    for dialogue in SAMPLE:
        facts: Any = {"model": "tiny", "temperature": 0, "tools": offered(dialogue, strict=strict)}
        first = tiny.chat.completions.create(messages=asked(dialogue), **facts).choices[0]
        results: Any = [
            {"role": "tool", "tool_call_id": call.id, "content": known.response}
            for call, known in zip(first.message.tool_calls or (), dialogue.calls, strict=False)
        ]
        told = [*asked(dialogue), first.message.to_dict(), *results]
        last = tiny.chat.completions.create(messages=told, **facts).choices[0]
        assert first.finish_reason == "tool_calls"
        assert (first.message.content or "") == dialogue.preface
        assert last.finish_reason == "stop"
        called = calls_of(first.message) == [(call.name, call.arguments) for call in dialogue.calls]
        right += called and last.message.content == dialogue.answer

    assert right >= len(SAMPLE) - 1  # a small model knows most of what it was taught


def test_a_stream_of_calls_adds_up_to_the_whole(tiny: OpenAI) -> None:
    for dialogue in SAMPLE[:4]:
        facts: Any = {"model": "tiny", "temperature": 0, "tools": offered(dialogue)}
        whole = tiny.chat.completions.create(messages=asked(dialogue), **facts)
        with tiny.chat.completions.stream(
            messages=asked(dialogue), stream_options={"include_usage": True}, **facts
        ) as stream:
            list(stream)
            streamed = stream.get_final_completion()

        assert calls_of(streamed.choices[0].message) == calls_of(whole.choices[0].message)
        assert (streamed.choices[0].message.content or None) == whole.choices[0].message.content
        assert streamed.choices[0].finish_reason == "tool_calls"
        assert streamed.usage is not None
        assert whole.usage is not None
        assert streamed.usage.completion_tokens == whole.usage.completion_tokens


def test_a_question_that_needs_no_tool_is_answered(tiny: OpenAI) -> None:
    known = pairs()[0]
    done = tiny.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": known.questions[0]}],
        tools=offered(SAMPLE[0]),
        temperature=0,
    )

    assert done.choices[0].finish_reason == "stop"
    assert done.choices[0].message.content
    assert done.choices[0].message.tool_calls is None


def test_one_call_is_enough_where_more_are_not_wanted(tiny: OpenAI) -> None:
    several = next(dialogue for dialogue in tool_dialogues() if len(dialogue.calls) > 1)
    done = tiny.chat.completions.create(
        model="tiny",
        messages=asked(several),
        tools=offered(several),
        parallel_tool_calls=False,
        temperature=0,
    )

    assert done.choices[0].finish_reason == "tool_calls"
    assert len(calls_of(done.choices[0].message)) == 1


PATCH = """start: BEGIN line{1,3} END
BEGIN: "*** Begin\\n"
END: "*** End"
line: /[-+ ]/ TEXT "\\n"
TEXT: /[a-z"]{1,9}/
"""


@pytest.mark.parametrize(
    ("syntax", "definition", "shape"),
    [
        ("lark", PATCH, r'\*\*\* Begin\n([-+ ][a-z"]{1,9}\n){1,3}\*\*\* End'),
        ("regex", '[a-z]{2,5}"\\n[0-9]{3}', r'[a-z]{2,5}"\n[0-9]{3}'),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_custom_tools_text_follows_its_grammar(
    tiny: OpenAI, syntax: Any, definition: str, shape: str, stream: bool
) -> None:
    grammar: Any = {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}}
    facts: Any = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Change it."}],
        "tools": [{"type": "custom", "custom": {"name": "edit", "format": grammar}}],
        "tool_choice": {"type": "custom", "custom": {"name": "edit"}},
        "max_tokens": 200,
        "temperature": 1,
        "seed": 4,
    }
    if stream:
        chunks = [c.choices[0] for c in tiny.chat.completions.create(**facts, stream=True)]
        pieces: Any = [call for c in chunks for call in c.delta.tool_calls or ()]
        said, reason = "".join(p.custom["input"] for p in pieces), chunks[-1].finish_reason
        assert [p.custom["name"] for p in pieces if p.id] == ["edit"]
    else:
        choice = tiny.chat.completions.create(**facts).choices[0]
        (call,) = choice.message.tool_calls or ()
        assert call.type == "custom"
        said, reason = call.custom.input, choice.finish_reason

    assert reason == "tool_calls"
    assert re.fullmatch(shape, said), said
