"""Tool calls: however the text is cut, what a client puts together are the calls that it holds."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.api.test_frames import events_of, request_for, stream

from llmhost.api.calls import CallReader
from llmhost.api.frames import whole_answer
from llmhost.core.grammar import GrammarSpec
from llmhost.core.output import Delta, FinishReason, Usage
from llmhost.core.request import GenerationRequest, Kind

TOOLS = [{"name": name, "parameters": {}, "strict": False} for name in ("now", "now_there", "add")]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('{}[],:"\\ é', max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(["now", "now_there", "add"]), st.dictionaries(st.text(), VALUES)),
    min_size=1,
    max_size=3,
)
THOUGHTS = st.just("") | st.text('<think>/ {"[', max_size=20).map(
    lambda text: "x" + text.replace("</think>", "") + "</think>"
)


def written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def text_of(calls: list[tuple[str, Any]], *, is_list: bool) -> str:
    said = [written({"name": name, "arguments": arguments}) for name, arguments in calls]
    return f"[{', '.join(said)}]" if is_list else said[0]


def request(*, many: bool) -> GenerationRequest:
    spec = GrammarSpec("tool_calls", json.dumps({"tools": TOOLS, "many": many}))
    return replace(request_for(Kind.CHAT), grammar=spec)


def cut(text: str, places: set[int]) -> list[str]:
    cuts = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(cuts)]


def deltas(pieces: list[str], reason: FinishReason = FinishReason.STOP) -> list[Delta]:
    return [*(Delta(0, piece) for piece in pieces), Delta(0, finish_reason=reason)]


def put_together(events: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]], str]:
    """As clients do it: by index, with everything but the arguments said once."""
    content, calls, reason = "", list[dict[str, Any]](), ""
    for event in events:
        for choice in event["choices"]:
            delta = choice["delta"]
            content += delta.get("content") or ""
            for piece in delta.get("tool_calls", ()):
                if piece["index"] == len(calls):
                    assert piece["type"] == "function"
                    assert piece["id"].startswith("call_")
                    calls.append({"id": piece["id"], "name": piece["function"]["name"], "said": ""})
                else:
                    assert set(piece) == {"index", "function"}
                    assert set(piece["function"]) == {"arguments"}
                calls[piece["index"]]["said"] += piece["function"]["arguments"]
            reason = choice["finish_reason"] or reason
    return content, calls, reason


@settings(deadline=None)
@given(calls=CALLS, is_list=st.booleans(), thoughts=THOUGHTS, places=st.sets(st.integers(0, 200)))
def test_calls_come_out_as_they_went_in(
    calls: list[tuple[str, Any]], is_list: bool, thoughts: str, places: set[int]
) -> None:
    calls = calls if is_list else calls[:1]
    asked, text = request(many=is_list), thoughts + text_of(calls, is_list=is_list)
    said = deltas(cut(text, places))

    events = events_of(stream(asked, [[delta] for delta in said], usage=False))
    whole = json.loads(whole_answer(asked, 1, said, Usage()))["choices"][0]

    content, pieces, reason = put_together(events)
    assert (content, reason) == (thoughts, "tool_calls")
    assert [(piece["name"], json.loads(piece["said"])) for piece in pieces] == calls
    assert (whole["message"]["content"] or "", whole["finish_reason"]) == (thoughts, "tool_calls")
    assert whole["message"]["tool_calls"] == [
        {
            "id": piece["id"],
            "type": "function",
            "function": {"name": piece["name"], "arguments": piece["said"]},
        }
        for piece in pieces
    ]
    assert len({piece["id"] for piece in pieces}) == len(pieces)


@settings(deadline=None)
@given(calls=CALLS, is_list=st.booleans(), end=st.integers(0, 60))
def test_an_answer_that_was_cut_says_so(
    calls: list[tuple[str, Any]], is_list: bool, end: int
) -> None:
    asked, text = request(many=is_list), text_of(calls, is_list=is_list)
    short = text[: min(end, len(text) - 1)]

    for reason in (FinishReason.STOP, FinishReason.LENGTH):
        said = deltas([short], reason)
        choice = json.loads(whole_answer(asked, 1, said, Usage()))["choices"][0]
        content, pieces, told = put_together(events_of(stream(asked, [said], usage=False)))

        assert choice["finish_reason"] == told == reason.value
        assert content == ""
        assert ("tool_calls" in choice["message"]) == bool(pieces)
        assert (choice["message"]["content"] == "") == (not pieces)
        full = [written(arguments) for _, arguments in calls]
        for piece, arguments in zip(pieces, full, strict=False):
            assert arguments.startswith(piece["said"])


def test_what_follows_the_calls_is_left_out() -> None:
    reader = CallReader(["now"], is_list=False)
    pieces = reader.push('{"name": "now", "arguments": {}}tail') + reader.finish()

    assert [piece.text for piece in pieces] == ["", "{}"]
    assert reader.is_complete
