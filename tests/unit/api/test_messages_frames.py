"""Anthropic's answers: however the pieces arrive, a stream adds up to the whole message."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.pipeline.node import asks

from llmhost.api.calls import Calls, calls_of
from llmhost.api.messages_frames import MessageFrames, whole_message
from llmhost.core.grammar import GrammarSpec
from llmhost.core.output import Delta, FinishReason, Usage
from llmhost.core.request import GenerationRequest, Kind
from llmhost.pipeline.reading import Reading
from llmhost.text.calls.families import BY_NAME

USAGE = Usage(prompt_tokens=7, cached_tokens=2, completion_tokens=5, reasoning_tokens=3)
HERMES = Reading(BY_NAME["hermes"], ("<think>", "</think>"), False, {})
CALL = '<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call>'
ANSWERS = {
    "text": "Hello there.",
    "nothing": "",
    "thoughts": "<think>hm, \u00fc</think>\n\nHello.",
    "a call": CALL,
    "two calls": f"Let me see.\n{CALL}\n{CALL}",
    "all": f"<think>hm</think>Let me see. {CALL}",
}
BLOCKS = {
    "text": ["text"],
    "nothing": [],
    "thoughts": ["thinking", "text"],
    "a call": ["tool_use"],
    "two calls": ["text", "tool_use", "tool_use"],
    "all": ["thinking", "text", "tool_use"],
}


def request_of(**facts: Any) -> GenerationRequest:
    messages = ({"role": "user", "content": "hi"},)
    return asks(kind=Kind.CHAT, prompts=(), messages=messages, may_call=True, **facts)


def calls(request: GenerationRequest) -> Calls | None:
    return calls_of(request, HERMES)


def deltas_of(
    text: str, cuts: Sequence[int] = (), reason: FinishReason = FinishReason.STOP
) -> list[Delta]:
    ends = [0, *sorted(set(cuts)), len(text)]
    pieces = [Delta(0, text[a:b]) for a, b in pairwise(ends)]
    return [*pieces, Delta(0, finish_reason=reason)]


def events_of(raw: bytes) -> list[dict[str, Any]]:
    """The events of a stream, of which each says its name twice."""
    events = []
    for event in raw.decode().removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def put_together(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message as Anthropic's clients make it of a stream."""
    first, *middle, delta, last = events
    assert (first["type"], last) == ("message_start", {"type": "message_stop"})
    message = first["message"]
    inputs: dict[int, str] = {}
    is_open = False
    for event in middle:
        match event["type"]:
            case "content_block_start":
                assert not is_open and event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
                is_open = True
            case "content_block_delta":
                assert is_open and event["index"] == len(message["content"]) - 1
                _add(message["content"][-1], event["delta"], inputs, event["index"])
            case "content_block_stop":
                assert is_open
                is_open = False
            case other:
                pytest.fail(other)
    assert not is_open
    for index, text in inputs.items():
        message["content"][index]["input"] = json.loads(text)
    message["usage"] |= delta["usage"]
    return {**message, **delta["delta"]}


def _add(block: dict[str, Any], delta: dict[str, Any], inputs: dict[int, str], index: int) -> None:
    match delta:
        case {"type": "input_json_delta", "partial_json": text}:
            inputs[index] = inputs.get(index, "") + text
        case {"type": "signature_delta", "signature": text}:
            block["signature"] = text
        case {"type": "text_delta", "text": text} | {"type": "thinking_delta", "thinking": text}:
            block[block["type"]] += text
        case _:
            pytest.fail(str(delta))


def streamed(request: GenerationRequest, deltas: Sequence[Delta], sizes: int = 1) -> bytes:
    frames = MessageFrames(request, USAGE.prompt_tokens, calls(request))
    batches = [deltas[at : at + sizes] for at in range(0, len(deltas), sizes)]
    said = b"".join(frames.events(batch) for batch in batches)
    return frames.beginning() + said + frames.last(USAGE)


def whole(request: GenerationRequest, deltas: Sequence[Delta], **more: Any) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(
        whole_message(request, deltas, USAGE, calls(request), **more)
    )
    return message


@pytest.mark.parametrize("name", ANSWERS)
@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 80), max_size=12), sizes=st.integers(1, 4))
def test_a_stream_adds_up_to_the_whole_message(name: str, cuts: list[int], sizes: int) -> None:
    text, request = ANSWERS[name], request_of()
    deltas = deltas_of(text, [cut for cut in cuts if cut < len(text)])

    message = put_together(events_of(streamed(request, deltas, sizes)))

    assert message == whole(request, deltas)
    assert [block["type"] for block in message["content"]] == BLOCKS[name]


def test_blocks_hold_what_was_said() -> None:
    request = request_of()

    message = whole(request, deltas_of(ANSWERS["all"]))

    thoughts, text, call = message["content"]
    assert (thoughts["thinking"], text["text"]) == ("hm", "Let me see.")
    assert thoughts["signature"]
    assert (call["name"], call["input"]) == ("now", {"zone": "UTC"})
    assert call["id"].startswith("toolu_")
    assert message["id"] == f"msg_{request.request_id.removeprefix('req_')}"
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "m")


def test_an_answer_that_nothing_has_to_be_found_in_is_text() -> None:
    request = request_of()
    deltas = deltas_of("<think>so what</think>", [3, 9])
    frames = MessageFrames(request, 7, None)
    raw = frames.beginning() + frames.events(deltas) + frames.last(USAGE)

    message = json.loads(whole_message(request, deltas, USAGE, None))

    assert message["content"] == [{"type": "text", "text": "<think>so what</think>"}]
    assert put_together(events_of(raw)) == message


def ended(reason: FinishReason, text: str = "x", stop: str | None = None, **more: Any) -> Any:
    message = whole(
        request_of(), [Delta(0, text), Delta(0, finish_reason=reason, stop=stop)], **more
    )
    return message["stop_reason"], message["stop_sequence"]


def test_every_end_has_anthropics_name() -> None:
    assert ended(FinishReason.STOP) == ("end_turn", None)
    assert ended(FinishReason.STOP, stop="END") == ("stop_sequence", "END")
    assert ended(FinishReason.STOP, CALL) == ("tool_use", None)
    assert ended(FinishReason.LENGTH) == ("max_tokens", None)
    assert ended(FinishReason.LENGTH, CALL[:50]) == ("max_tokens", None)
    assert ended(FinishReason.LENGTH, is_cramped=True) == ("model_context_window_exceeded", None)
    assert ended(FinishReason.CONTENT_FILTER) == ("refusal", None)


def test_a_refusal_has_details_of_its_type() -> None:
    message = whole(request_of(), deltas_of("x", reason=FinishReason.CONTENT_FILTER))

    assert message["stop_details"]["type"] == "refusal"
    assert "stop_details" not in whole(request_of(), deltas_of("x"))


def test_an_input_that_is_no_object_is_an_empty_one() -> None:
    cut = whole(request_of(), deltas_of(CALL[:50], reason=FinishReason.LENGTH))

    assert [block["input"] for block in cut["content"]] == [{}]


def test_usage_tells_what_a_cache_had_apart() -> None:
    usage = whole(request_of(), deltas_of("x"), cost={"total_cost_usd": "1"})["usage"]

    assert usage == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 2,
        "output_tokens": 5,
        "service_tier": "standard",
        "output_tokens_details": {"thinking_tokens": 3},
        "cost": {"total_cost_usd": "1"},
    }


def test_a_stream_begins_with_the_prompts_tokens_and_ends_with_what_is_paid() -> None:
    frames = MessageFrames(request_of(), 7, None)

    (first,) = events_of(frames.beginning())
    delta, _ = events_of(frames.last(USAGE, facts={"cost_usd": "0.1"}))

    assert first["message"]["usage"]["input_tokens"] == 7
    assert first["message"]["stop_reason"] is None
    assert delta["usage"]["llmhost"] == {"cost_usd": "0.1"}


def test_calls_that_are_required_are_blocks_of_their_own() -> None:
    wish = {"tools": [{"name": "now", "parameters": {}, "strict": True}], "many": True}
    request = request_of(grammar=GrammarSpec("tool_calls", json.dumps(wish)))
    text = '[{"name": "now", "arguments": {"a":1}}, {"name": "now", "arguments": {}}]'

    message = json.loads(whole_message(request, deltas_of(text), USAGE, calls_of(request, None)))

    assert [block["input"] for block in message["content"]] == [{"a": 1}, {}]
    assert len({block["id"] for block in message["content"]}) == 2
    assert message["stop_reason"] == "tool_use"


def test_calls_beyond_the_most_are_not_told() -> None:
    request = request_of(most_calls=1)

    message = whole(request, deltas_of(ANSWERS["two calls"]))

    assert [block["type"] for block in message["content"]] == ["text", "tool_use"]
    assert message["stop_reason"] == "tool_use"
