"""Log probabilities, token ids and echoes: whatever is held back, they say of the text what the text says."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.pipeline.node import asks

from llmhost.api.frames import frames_of, whole_answer
from llmhost.api.report import LARGE, SLICE, Report, report_of
from llmhost.api.tokens import Placed, Spelling
from llmhost.core.output import Delta, FinishReason, TokenLogprobs, Usage
from llmhost.core.request import GenerationRequest, Kind
from llmhost.core.sampling import Sampling
from llmhost.pipeline.terms import Terms
from llmhost.text.detokenise import ByteDetokeniser
from llmhost.text.watch import Watch
from llmhost.text.words import WordTokenizer

PIECES = [b"a", b" b", b"cd", "é".encode(), "é".encode()[:1], "é".encode()[1:], b"\xff", b" "]
END = len(PIECES)
"""The one special token."""
USAGE = Usage(prompt_tokens=3, completion_tokens=2)


def piece(token: int) -> str | bytes | None:
    if token == END:
        return None
    try:
        return PIECES[token].decode()
    except UnicodeDecodeError:
        return PIECES[token]


class Bytes(WordTokenizer):
    """A byte-level tokenizer with pieces of every kind, and one end."""

    def __init__(self) -> None:
        super().__init__(END + 1)
        self._pieces = {token: piece(token) for token in range(END + 1)}

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset({END})

    def watch(self, stop: Sequence[str] = (), shown: Sequence[str] = ()) -> Watch:
        return Watch(ByteDetokeniser(self._pieces), stop)

    def token_bytes(self, token: int) -> bytes:
        return b"" if token == END else PIECES[token]

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return "<end>" if tokens == [END] else b"".join(map(self.token_bytes, tokens)).decode()


TOKENIZER = Bytes()


def thought(token: int, *top: int) -> TokenLogprobs:
    return TokenLogprobs(token, -1.5, 3, tuple((t, -0.25 * (i + 1)) for i, t in enumerate(top)))


def said(tokens: Sequence[int], stop: Sequence[str] = (), index: int = 0) -> list[Delta]:
    """What an engine says for these tokens, one delta each, as the scheduler does."""
    watch, deltas = TOKENIZER.watch(stop), list[Delta]()
    for token in tokens:
        logprobs = (thought(token, 1, 2),)
        if token == END:
            end = FinishReason.STOP
            return [*deltas, Delta(index, watch.flush(), (token,), end, USAGE, logprobs=logprobs)]
        text = watch.push(token)
        if watch.is_stopped:
            end = FinishReason.STOP
            return [*deltas, Delta(index, text, (token,), end, USAGE, logprobs=logprobs)]
        deltas.append(Delta(index, text, (token,), logprobs=logprobs))
    rest = watch.flush()
    end = FinishReason.STOP if watch.is_stopped else FinishReason.LENGTH
    return [*deltas, Delta(index, rest, finish_reason=end, usage=USAGE)]


def request_for(kind: Kind, *, top: int | None = 2, **facts: Any) -> GenerationRequest:
    sampling = Sampling(logprobs=top, prompt_logprobs=facts.pop("prompt_logprobs", None))
    if kind is Kind.CHAT:
        facts |= {"prompts": (), "messages": ({"role": "user", "content": "hi"},)}
    return asks(kind=kind, sampling=sampling, **facts)


def report_for(request: GenerationRequest, prompts: Sequence[Sequence[int]] = ((0,),)) -> Report:
    echoes = tuple(TOKENIZER.decode(list(prompt)) for prompt in prompts) if request.echo else ()
    terms = Terms(tuple(map(tuple, prompts)), request.sampling, frozenset(), echoes)
    report = report_of(request, terms, TOKENIZER)
    assert report is not None
    return report


def whole(request: GenerationRequest, deltas: Sequence[Delta], *prompts: Sequence[int]) -> Any:
    report = report_for(request, prompts or ((0,),))
    return json.loads(whole_answer(request, 1, deltas, USAGE, report))


def streamed(
    request: GenerationRequest, batches: Sequence[Sequence[Delta]], *prompts: Sequence[int]
) -> list[dict[str, Any]]:
    report = report_for(request, prompts or ((0,),))
    frames = frames_of(request, 1, include_usage=False, report=report)
    raw = b"".join(frames.events(batch) for batch in batches)
    return [json.loads(event.removeprefix("data: ")) for event in raw.decode().split("\n\n")[:-1]]


TOKENS = st.lists(st.integers(0, END - 1), max_size=8)
STOPS = st.sampled_from([(), ("b",), ("bc", "é"), ("cd b",), ("�",)])


@pytest.mark.parametrize("kind", [Kind.CHAT, Kind.COMPLETION])
@settings(max_examples=150)
@given(tokens=TOKENS, ends=st.booleans(), stop=STOPS, cuts=st.sets(st.integers(1, 8)))
def test_entries_cover_the_text_in_every_piece_of_a_stream_and_in_the_whole(
    kind: Kind, tokens: list[int], ends: bool, stop: tuple[str, ...], cuts: set[int]
) -> None:
    deltas = said([*tokens, *([END] if ends else [])], stop)
    borders = [0, *sorted(cut for cut in cuts if cut < len(deltas)), len(deltas)]
    request = request_for(kind)
    answer = whole(request, deltas)["choices"][0]
    events = streamed(request, [deltas[a:b] for a, b in pairwise(borders)])
    pieces = [event["choices"][0] for event in events]

    text, entries = "".join(delta.text for delta in deltas), entries_of(kind, answer)
    assert [e for p in pieces for e in entries_of(kind, p)] == entries
    has_end = kind is Kind.COMPLETION and END in (t for d in deltas for t in d.tokens)
    count = len(entries) - (has_end and len(entries) > len(tokens))
    assert tokens[:count] == [token for d in deltas for token in d.tokens][:count]
    covered = TOKENIZER.watch(())
    shown = "".join(map(covered.push, tokens[:count])) + covered.flush()
    assert shown.startswith(text)
    if not stop:
        assert shown == text
    so_far = ""
    for part in pieces:  # no entry comes before its text
        so_far += part.get("text") or part.get("delta", {}).get("content") or ""
        if kind is Kind.COMPLETION:
            assert all(at < len(so_far) + has_end for at in entries_of(kind, part))


def entries_of(kind: Kind, choice: dict[str, Any]) -> list[Any]:
    """The entries of a chat; of a completion, where they begin in the text."""
    if choice["logprobs"] is None:
        return []
    columns = choice["logprobs"]
    return list(columns["content"] if kind is Kind.CHAT else columns["text_offset"])


def test_a_chat_has_each_token_with_its_bytes_and_as_many_of_the_likeliest_as_were_asked_for() -> (
    None
):
    answer = whole(request_for(Kind.CHAT, top=1), said([0, 4, 5, END]))
    content = answer["choices"][0]["logprobs"]["content"]

    assert answer["choices"][0]["logprobs"]["refusal"] is None
    assert [(e["token"], e["bytes"]) for e in content] == [
        ("a", [97]),
        ("�", [0xC3]),
        ("�", [0xA9]),
    ]
    likeliest = {"token": " b", "logprob": -0.25, "bytes": [32, 98]}
    assert all(entry["top_logprobs"] == [likeliest] for entry in content)
    assert {entry["logprob"] for entry in content} == {-1.5}


def test_a_response_has_an_empty_list_for_a_token_of_no_bytes() -> None:
    thought = TokenLogprobs(0, -1.5, 1, ((END, -0.25), (0, -1.5)))
    report = report_for(request_for(Kind.CHAT, top=2))
    ((_, entry),) = report.entries([Placed(0, 0, 1, thought)])

    assert [each["bytes"] for each in json.loads(entry)["top_logprobs"]] == [[], [97]]


def test_no_likeliest_are_told_when_none_are_asked_for() -> None:
    [entry] = whole(request_for(Kind.CHAT, top=0), said([0]))["choices"][0]["logprobs"]["content"]

    assert entry["top_logprobs"] == []


def test_a_completion_has_columns_and_names_parts_of_characters_apart() -> None:
    [choice] = whole(request_for(Kind.COMPLETION), said([0, 4, 5, 6]))["choices"]

    assert choice["text"] == "aé�"
    assert choice["logprobs"]["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "bytes:\\xff"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 2]
    assert choice["logprobs"]["token_logprobs"] == [-1.5] * 4
    assert choice["logprobs"]["top_logprobs"][0] == {" b": -0.25, "cd": -0.5, "a": -1.5}


def test_the_end_of_a_completion_is_its_last_entry_though_it_has_no_text() -> None:
    [choice] = whole(request_for(Kind.COMPLETION), said([0, 1, END]))["choices"]

    assert choice["text"] == "a b"
    assert choice["logprobs"]["tokens"] == ["a", " b", "<end>"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 3]


def test_a_special_token_in_the_middle_is_named_and_has_no_bytes() -> None:
    deltas = [Delta(0, "a", (0,), logprobs=(thought(0),))]
    deltas += [Delta(0, "", (END,), logprobs=(thought(END),))]
    deltas += [Delta(0, "a", (0,), FinishReason.LENGTH, USAGE, logprobs=(thought(0),))]
    content = whole(request_for(Kind.CHAT, ignore_eos=True), deltas)["choices"][0]["logprobs"][
        "content"
    ]

    assert [(e["token"], e["bytes"]) for e in content] == [
        ("a", [97]),
        ("<end>", None),
        ("a", [97]),
    ]


def test_what_can_not_be_said_at_all_has_a_number_that_json_can_write() -> None:
    never = TokenLogprobs(0, float("-inf"), 9, ((1, float("-inf")),))
    deltas = [Delta(0, "a", (0,), FinishReason.LENGTH, USAGE, logprobs=(never,))]
    [entry] = whole(request_for(Kind.CHAT), deltas)["choices"][0]["logprobs"]["content"]

    assert (entry["logprob"], entry["top_logprobs"][0]["logprob"]) == (-9999.0, -9999.0)


def test_tokens_whose_text_a_rule_holds_back_are_not_shown() -> None:
    """A screen publishes tokens at once, and their text later or never."""
    deltas = [
        Delta(0, "", (0,), logprobs=(thought(0),)),
        Delta(0, "a", (2,), logprobs=(thought(2),)),
    ]
    deltas += [Delta(0, "", (), FinishReason.CONTENT_FILTER, USAGE)]
    request = request_for(Kind.CHAT, return_token_ids=True)
    [choice] = whole(request, deltas)["choices"]

    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["a"]
    assert choice["token_ids"] == [0]


@pytest.mark.parametrize("kind", [Kind.CHAT, Kind.COMPLETION])
def test_with_token_ids_there_is_an_entry_for_the_end_as_well(kind: Kind) -> None:
    deltas = said([0, 1, 2, END], ("cd",))
    request = request_for(kind, return_token_ids=True)
    answer = whole(request, deltas, (0, 1))
    events = streamed(request, [[delta] for delta in deltas], (0, 1))
    [choice] = answer["choices"]
    pieces = [event["choices"][0] for event in events]

    assert choice["token_ids"] == [0, 1, 2]
    assert [t for part in pieces for t in part.get("token_ids", [])] == [0, 1, 2]
    assert len(entries_of(kind, choice)) == 3
    root, first = (answer, events[0]) if kind is Kind.CHAT else (choice, pieces[0])
    assert root["prompt_token_ids"] == first["prompt_token_ids"] == [0, 1]


def test_an_echo_comes_before_the_answer_and_so_do_its_log_probabilities() -> None:
    request = request_for(Kind.COMPLETION, echo=True, n=2, prompts=("a b", "cd"))
    told = [Delta(0, prompt_logprobs=(thought(1, 0),))]
    deltas = [*said([2, 2], index=1), *told, *said([0, 0], index=0), *said([1], index=2)]
    deltas += said([1], index=3)
    choices = whole(request, deltas, (0, 1), (2,))["choices"]
    events = streamed(request, [[delta] for delta in deltas], (0, 1), (2,))

    assert [choice["text"] for choice in choices] == ["a baa", "a bcdcd", "cd b", "cd b"]
    first = choices[1]["logprobs"]
    assert first["tokens"] == ["a", " b", "cd", "cd"]
    assert first["token_logprobs"] == [None, -1.5, -1.5, -1.5]
    assert first["top_logprobs"][:2] == [None, {"a": -0.25, " b": -1.5}]
    assert first["text_offset"] == [0, 1, 3, 5]
    pieces = [event["choices"][0] for event in events]
    for choice in choices:
        mine = [part for part in pieces if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        columns = [part["logprobs"] for part in mine if part["logprobs"]]
        for name, column in choice["logprobs"].items():
            assert [entry for part in columns for entry in part[name]] == column


def test_an_echo_without_log_probabilities_waits_for_nothing() -> None:
    request = request_for(Kind.COMPLETION, echo=True, top=None)
    events = streamed(request, [said([2])[:1]], (0, 1))

    assert [event["choices"][0]["text"] for event in events] == ["a b", "cd"]
    assert [event["choices"][0]["logprobs"] for event in events] == [None, None]


def test_an_echo_whose_log_probabilities_never_come_is_not_waited_for_for_ever() -> None:
    request = request_for(Kind.COMPLETION, echo=True)
    events = streamed(request, [said([2])], (0, 1))

    assert "".join(event["choices"][0]["text"] for event in events) == "a bcd"
    assert events[0]["choices"][0]["logprobs"]["token_logprobs"] == [None, None]


@pytest.mark.parametrize("kind", [Kind.CHAT, Kind.COMPLETION])
def test_what_is_thought_of_the_prompt_comes_by_token_id_with_ranks(kind: Kind) -> None:
    request = request_for(kind, top=None, prompt_logprobs=1)
    told = [Delta(0, prompt_logprobs=(thought(1, 0, 2),)), *said([2])]
    answer = whole(request, told, (0, 1))
    told_in = answer if kind is Kind.CHAT else answer["choices"][0]

    assert told_in["prompt_logprobs"] == [
        None,
        {
            "0": {"logprob": -0.25, "rank": 1, "decoded_token": "a"},
            "1": {"logprob": -1.5, "rank": 3, "decoded_token": " b"},
        },
    ]


def test_a_request_for_text_alone_has_no_report() -> None:
    request = request_for(Kind.CHAT, top=None)

    assert report_of(request, Terms(((0,),), request.sampling, frozenset()), TOKENIZER) is None


def test_much_to_report_is_written_in_a_thread() -> None:
    request = request_for(Kind.COMPLETION, echo=True)
    long = Delta(0, tokens=(0,) * LARGE)

    assert not report_for(request, ((0,) * 100,)).is_large([])
    assert report_for(request, ((0,) * (LARGE + 1),)).is_large([])
    assert report_for(request_for(Kind.CHAT)).is_large([long])


def test_a_long_column_is_the_same_in_slices() -> None:
    tokens = [index % 3 for index in range(2 * SLICE + 1)]
    [choice] = whole(request_for(Kind.COMPLETION), said(tokens))["choices"]

    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert len(choice["logprobs"]["text_offset"]) == len(tokens)


def test_a_token_is_looked_up_once() -> None:
    spelling = Spelling(TOKENIZER)

    assert spelling.of(0) is spelling.of(0)
