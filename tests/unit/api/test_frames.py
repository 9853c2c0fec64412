"""Answer shapes: however the pieces arrive, what a client puts together is the answer."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.pipeline.node import asks

from llmhost.api.door import Line
from llmhost.api.frames import DONE, Frames, frames_of, whole_answer
from llmhost.core.output import Delta, FinishReason, Usage
from llmhost.core.request import GenerationRequest, Kind
from llmhost.pipeline.stream import Piece, Writing

USAGE = Usage(prompt_tokens=7, cached_tokens=2, completion_tokens=5)
ENDS = st.sampled_from([FinishReason.STOP, FinishReason.LENGTH, FinishReason.CONTENT_FILTER])


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[list[Delta]], dict[int, str]]:
    """Some choices' deltas, mixed and cut into batches in any way, and each choice's text."""
    queues: list[list[Delta]] = []
    texts: dict[int, str] = {}
    for index in range(draw(st.integers(1, 4))):
        pieces = draw(st.lists(st.text(max_size=6), max_size=5))
        texts[index] = "".join(pieces)
        last = draw(st.booleans()) and pieces  # the end may bring text along
        queue = [Delta(index, text) for text in (pieces[:-1] if last else pieces)]
        queue.append(Delta(index, pieces[-1] if last else "", finish_reason=draw(ENDS)))
        queues.append(queue)
    mixed: list[Delta] = []
    while left := [queue for queue in queues if queue]:
        mixed.append(draw(st.sampled_from(left)).pop(0))
    cuts = sorted(draw(st.sets(st.integers(1, len(mixed)), max_size=5)) | {0, len(mixed)})
    return [mixed[a:b] for a, b in pairwise(cuts)], texts


def request_for(kind: Kind) -> GenerationRequest:
    if kind is Kind.CHAT:
        return asks(kind=kind, prompts=(), messages=({"role": "user", "content": "hi"},))
    return asks()


def stream(request: GenerationRequest, batches: Sequence[list[Delta]], *, usage: bool) -> bytes:
    frames = Frames(request, 1, include_usage=usage)
    return b"".join(frames.events(batch) for batch in batches) + frames.last(USAGE)


def events_of(raw: bytes) -> list[dict[str, Any]]:
    lines = raw.decode().split("\n\n")
    assert lines[-1] == "" and lines[-2] == "data: [DONE]"
    assert all(line.startswith("data: {") and "\n" not in line for line in lines[:-2])
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@pytest.mark.parametrize("kind", list(Kind))
@settings(max_examples=40)
@given(answer=answers(), usage=st.booleans())
def test_a_streams_events_add_up_to_the_answer(
    kind: Kind, answer: tuple[list[list[Delta]], dict[int, str]], usage: bool
) -> None:
    batches, texts = answer
    request = request_for(kind)
    events = events_of(stream(request, batches, usage=usage))
    choices = [choice for event in events for choice in event["choices"]]

    for index, text in texts.items():
        mine = [choice for choice in choices if choice["index"] == index]
        assert [c["finish_reason"] is not None for c in mine] == [False] * (len(mine) - 1) + [True]
        if kind is Kind.CHAT:
            deltas = [choice["delta"] for choice in mine]
            assert "".join(delta.get("content", "") for delta in deltas) == text
            assert ["role" in delta for delta in deltas] == [True] + [False] * (len(mine) - 1)
            assert deltas[-1] == {}
        else:
            assert "".join(choice["text"] for choice in mine) == text
    assert len({(e["id"], e["object"], e["created"], e["model"]) for e in events}) == 1


@pytest.mark.parametrize("kind", list(Kind))
@settings(max_examples=40)
@given(answer=answers())
def test_usage_comes_last_and_only_when_asked_for(
    kind: Kind, answer: tuple[list[list[Delta]], dict[int, str]]
) -> None:
    batches, _ = answer
    without = events_of(stream(request_for(kind), batches, usage=False))
    *events, last = events_of(stream(request_for(kind), batches, usage=True))

    assert not any("usage" in event for event in without)
    assert all(event["usage"] is None and event["choices"] for event in events)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


@pytest.mark.parametrize("kind", list(Kind))
@settings(max_examples=40)
@given(answer=answers())
def test_a_whole_answer_has_the_same_text_and_reasons_as_the_stream(
    kind: Kind, answer: tuple[list[list[Delta]], dict[int, str]]
) -> None:
    batches, texts = answer
    deltas = [delta for batch in batches for delta in batch]
    body = json.loads(whole_answer(request_for(kind), 1, deltas, USAGE))
    said = {
        choice["index"]: choice["message"]["content"] if kind is Kind.CHAT else choice["text"]
        for choice in body["choices"]
    }

    assert said == texts
    assert [choice["index"] for choice in body["choices"]] == sorted(texts)
    assert {c["index"]: c["finish_reason"] for c in body["choices"]} == {
        delta.index: delta.finish_reason for delta in deltas if delta.finish_reason
    }


@pytest.mark.parametrize(("is_flex", "tier"), [(True, "flex"), (False, "default")])
def test_answers_name_the_tier_that_they_got(is_flex: bool, tier: str) -> None:
    request = replace(request_for(Kind.CHAT), is_flex=is_flex)
    ended = [Delta(0, "a", finish_reason=FinishReason.STOP)]

    assert json.loads(whole_answer(request, 1, ended, USAGE))["service_tier"] == tier
    events = events_of(stream(request, [ended], usage=True))
    assert {event["service_tier"] for event in events} == {tier}


@pytest.mark.parametrize("kind", list(Kind))
def test_every_event_counts_when_that_is_asked_for(kind: Kind) -> None:
    frames = frames_of(request_for(kind), 1, include_usage=False, prompt_tokens=7)
    batches = [[Delta(0, "a", (1,))], [Delta(0, "b", (2, 3))]]
    batches += [[Delta(0, "", (4, 5), FinishReason.STOP)]]
    raw = b"".join(frames.events(batch) for batch in batches) + frames.last(USAGE)

    counts = [event["usage"]["completion_tokens"] for event in events_of(raw)]
    assert counts == sorted(counts)
    assert {1, 3, 5} == set(counts)
    assert {event["usage"]["prompt_tokens"] for event in events_of(raw)} == {7}


def test_pieces_that_piled_up_become_one_event() -> None:
    frames = Frames(request_for(Kind.CHAT), 1, include_usage=False)
    frames.events([Delta(0, "a")])

    assert frames.events([Delta(0, "b"), Delta(0, "c")]).count(b"data: ") == 1


class Wire:
    """Keeps what it is offered, while it is free."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.is_busy = False

    def is_free(self) -> bool:
        return not self.is_busy

    def write(self, body: bytes) -> None:
        self.said.append(body)

    def write_raw(self, piece: bytes) -> None:
        self.said.append(piece)

    def pen(self, before: bytes, behind: bytes, encode: Callable[[str], bytes]) -> Piece:
        def piece(text: str) -> bytes | None:
            return None if self.is_busy else before + encode(text) + behind if text else b""

        return piece


@given(answers(), st.sampled_from([Kind.CHAT, Kind.COMPLETION]), st.data())
def test_what_is_taken_is_what_would_be_framed(
    answer: tuple[list[list[Delta]], dict[int, str]], kind: Kind, data: st.DataObject
) -> None:
    wire, request = Wire(), request_for(kind)
    taking, plain = (Frames(request, 1, include_usage=False) for _ in "ab")
    otherwise: list[bytes] = []

    def write(deltas: list[Delta]) -> bool:
        if wire.is_busy:
            return False
        otherwise.append(taking.events(deltas))
        wire.said.append(otherwise[-1])
        return True

    take = taking.taking(cast(Line, wire), write)
    assert isinstance(take, Writing)
    for batch in answer[0]:
        wire.is_busy = data.draw(st.booleans())
        is_piece = len(batch) == 1 and not batch[0].finish_reason
        piece_of = take.pieces.get(batch[0].index) if is_piece else None
        if piece_of is not None and (piece := piece_of(batch[0].text)) is not None:
            take.write(piece)
            continue
        if not take(batch):
            assert wire.is_busy
            wire.said.append(taking.events(batch))
    assert b"".join(wire.said) == b"".join(plain.events(batch) for batch in answer[0])


def test_deltas_without_text_make_no_event() -> None:
    frames = Frames(request_for(Kind.CHAT), 1, include_usage=False)

    assert frames.events([Delta(0, tokens=(1,))]) == b""
    assert frames.last(USAGE) == DONE
