"""Whatever a model says, in whatever format and pieces: a stream adds up to what the whole answer would have been."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.api.test_frames import request_for

from llmhost.api.frames import frames_of, whole_answer
from llmhost.core.grammar import GrammarSpec
from llmhost.core.output import Delta, FinishReason, Usage
from llmhost.core.request import GenerationRequest, Kind
from llmhost.pipeline.reading import Reading
from llmhost.text.calls.families import BY_NAME

ARGS = '{"city": "Oslo", "is": [1, {"a": "}"}]}'
COMMON = (
    *("a", " ", "\n", "é", "{", "}", "[", "]", "<", "; ", ", ", '"', "<think>", "</think>", "now"),
    *(f'{{"name": "f", "arguments": {ARGS}}}', '{"name": "f", "parameters": {}}', ARGS, "f", "()"),
    *(
        "f(a=1)",
        "<function=f>",
        "</function>",
        "<parameter=a>",
        "</parameter>",
        "```json\n",
        "\n```",
    ),
    *("functions.f:0", "analysis", "commentary to=functions.f ", "final", '<invoke name="f">'),
)


def said(name: str) -> st.SearchStrategy[str]:
    """What the family is made of, twice as often as all else."""
    family = BY_NAME[name]
    own = st.sampled_from([*family.openers, *family.signs])
    return st.lists(own | own | st.sampled_from(COMMON), max_size=14).map("".join)


def put_together(body: bytes) -> dict[str, Any]:
    """What a client holds in the end."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "finish_reason": None}
    for line in body.decode().splitlines():
        if not line.startswith("data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning"] += delta.get("reasoning") or ""
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(message["calls"]):
                    message["calls"].append([call["id"], call["function"]["name"], ""])
                message["calls"][call["index"]][2] += call["function"]["arguments"]
            message["finish_reason"] = choice["finish_reason"]
    return message


def of_whole(body: bytes) -> dict[str, Any]:
    [choice] = json.loads(body)["choices"]
    message = choice["message"]
    calls = message.get("tool_calls", ())
    return {
        "content": message["content"] or "",
        "reasoning": message.get("reasoning", ""),
        "calls": [[c["id"], c["function"]["name"], c["function"]["arguments"]] for c in calls],
        "finish_reason": choice["finish_reason"],
    }


def asks(most_calls: int | None) -> GenerationRequest:
    request = request_for(Kind.CHAT)
    return replace(request, request_id="req_1", may_call=True, most_calls=most_calls)


@pytest.mark.parametrize("name", sorted(BY_NAME))
@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    places=st.sets(st.integers(0, 400), max_size=12),
    begun=st.booleans(),
    most=st.sampled_from([None, 1]),
    reason=st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]),
)
def test_a_stream_is_the_whole_answer_in_pieces(
    name: str,
    data: st.DataObject,
    places: set[int],
    begun: bool,
    most: int | None,
    reason: FinishReason,
) -> None:
    text = data.draw(said(name))
    reading = Reading(BY_NAME[name], ("<think>", "</think>"), begun, {})
    cuts = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    pieces = [Delta(0, text[a:b]) for a, b in pairwise(cuts)]
    last = Delta(0, finish_reason=reason, usage=Usage(1, 0, 1))
    frames = frames_of(asks(most), 1, include_usage=False, reading=reading)
    streamed = b"".join(frames.events([delta]) for delta in (*pieces, last))
    whole = whole_answer(asks(most), 1, [*pieces, last], Usage(1, 0, 1), reading=reading)

    assert put_together(streamed) == of_whole(whole)


@pytest.mark.parametrize(
    "said",
    ['{"a": "<think>b</think>"}', '{"a": "<tool_call>{}"}', '<think>b</think>\n\n{"a": "<think>"}'],
)
def test_marks_within_a_text_that_is_held_to_a_grammar_are_content(said: str) -> None:
    grammar = GrammarSpec("json_object", "")
    request = replace(asks(None), grammar=grammar, may_call=False)
    reading = Reading(BY_NAME["hermes"], ("<think>", "</think>"), False, {})
    for size in (1, 3, len(said)):
        pieces = [Delta(0, said[at : at + size]) for at in range(0, len(said), size)]
        last = Delta(0, finish_reason=FinishReason.STOP, usage=Usage(1, 0, 1))
        whole = whole_answer(request, 1, [*pieces, last], Usage(1, 0, 1), reading=reading)
        message = json.loads(whole)["choices"][0]["message"]
        assert message["content"] == said[said.index("{") :]
        assert not message.get("tool_calls")
