"""Items of a response: however the pieces arrive, the events of a stream add up to the items of the whole answer."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.pipeline.node import asks

from llmhost.api.calls import calls_of
from llmhost.api.responses.events import Events, Silence
from llmhost.api.responses.items import Items, Seal
from llmhost.core.request import GenerationRequest, Kind
from llmhost.pipeline.reading import Reading
from llmhost.text.calls.families import BY_NAME

HERMES = Reading(BY_NAME["hermes"], ("<think>", "</think>"), False, {})
CALL = '<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call>'
RUN = '<tool_call>\n{"name": "run", "arguments": {"input": "a\\n\\"b\\""}}\n</tool_call>'
ANSWERS = {
    "text": "Hello there.",
    "nothing": "",
    "thoughts": "<think>hm, \u00fc</think>\n\nHello.",
    "a call": CALL,
    "two calls": f"Let me see.\n{CALL}\n{RUN}",
    "all": f"<think>hm</think>Let me see. {CALL}",
    "cut thoughts": "<think>and so",
    "a cut call": CALL[:40],
}
KINDS = {
    "text": ["message"],
    "nothing": ["message"],
    "thoughts": ["reasoning", "message"],
    "a call": ["function_call"],
    "two calls": ["message", "function_call", "custom_tool_call"],
    "all": ["reasoning", "message", "function_call"],
    "cut thoughts": ["reasoning"],
    "a cut call": ["function_call"],
}


def request_of() -> GenerationRequest:
    messages = ({"role": "user", "content": "hi"},)
    facts: Any = {"may_call": True, "custom_tools": frozenset({"run"})}
    return asks(kind=Kind.RESPONSE, prompts=(), messages=messages, **facts)


def items_of(
    pieces: Sequence[str], events: Events, *, is_cut: bool = False, seal: Seal | None = None
) -> list[dict[str, Any]]:
    request = request_of()
    calls = calls_of(request, HERMES)
    items = Items("req_1", calls, events, seal, request.custom_tools)
    for piece in pieces:
        items.push(piece)
    items.finish(is_cut=is_cut)
    return plain(items.output)


def plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def assembled(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a client makes of events that come in the order that it relies on."""
    items: list[dict[str, Any]] = []
    texts: list[str] = []
    for number, event in enumerate(events):
        assert event["sequence_number"] == number
        kind = event["type"].removeprefix("response.")
        assert event["output_index"] == len(items) - (kind != "output_item.added")
        match kind:
            case "output_item.added":
                assert not items or items[-1]["status"] != "in_progress"
                items.append(event["item"])
                texts = []
            case "output_item.done":
                assert event["item"]["id"] == items[-1]["id"]
                items[-1] = event["item"]
            case "content_part.added":
                assert event["part"]["text"] == ""
            case "content_part.done":
                assert event["part"]["text"] == "".join(texts)
            case _ if kind.endswith(".delta"):
                assert event["item_id"] == items[-1]["id"]
                texts.append(event["delta"])
            case _:
                said = next(event[n] for n in ("text", "arguments", "input") if n in event)
                assert said == "".join(texts)
    return items


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_items_of_what_it_says(name: str) -> None:
    items = items_of([ANSWERS[name]], Silence())

    assert [item["type"] for item in items] == KINDS[name]
    assert len({item["id"] for item in items}) == len(items)


@settings(max_examples=60)
@given(
    name=st.sampled_from(sorted(ANSWERS)),
    cuts=st.lists(st.integers(0, 120), max_size=20),
    is_cut=st.booleans(),
)
def test_events_add_up_to_the_whole_answer(name: str, cuts: list[int], is_cut: bool) -> None:
    text = ANSWERS[name]
    ends = [0, *sorted({min(cut, len(text)) for cut in cuts}), len(text)]
    events = Events()

    items = items_of([text[a:b] for a, b in pairwise(ends)], events, is_cut=is_cut)

    told = [
        msgspec.json.decode(raw.partition(b"\ndata: ")[2].rstrip(b"\n")) for raw in events.take()
    ]
    assert assembled(told) == items == items_of([text], Silence(), is_cut=is_cut)
    is_called = is_cut and name in ("a call", "two calls", "all")
    assert (items[-1]["status"] == "completed") == (not is_cut or is_called)


def test_what_custom_tools_are_given_is_plain_text_and_thoughts_are_sealed_beside() -> None:
    *_, run = items_of([ANSWERS["two calls"]], Silence())
    assert run["input"] == 'a\n"b"'

    thoughts = items_of([ANSWERS["thoughts"]], Silence(), seal=str.upper)[0]
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "hm, \u00fc"}]
    assert thoughts["encrypted_content"] == "HM, \u00dc"


def test_log_probabilities_stand_with_the_text_that_they_are_of() -> None:
    calls = calls_of(request_of(), HERMES)
    items = Items("req_1", calls, Silence())
    for piece in ("<think>", "hm", "</think>", "ab", "c"):
        items.push(piece, [(len(piece), msgspec.json.encode({"token": piece}))])
    items.finish()

    reasoning, message = plain(items.output)
    assert "logprobs" not in reasoning["content"][0]
    assert message["content"][0]["logprobs"] == [{"token": "ab"}, {"token": "c"}]
