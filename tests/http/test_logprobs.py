"""Log probabilities, echoes and token ids from the built-in model, read by OpenAI's own client."""

from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI
from server_process import Node, events

from llmhost.deploy.sources import BUILT_IN_MODELS
from llmhost.text.tokenizer import load_tokenizer

ClientOf = Callable[[Node, str], OpenAI]

CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "What is llmhost?"}],
    "temperature": 0,
    "max_tokens": 24,
}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "Once upon a time", "temperature": 0}
CLOSE = 2e-3
"""The same text in other steps: float32, other sums."""


@pytest.fixture
def tiny(tiny_node: Node, client_of: ClientOf) -> OpenAI:
    return client_of(tiny_node, "any")


def dump(entries: Any) -> list[Any]:
    return [entry.model_dump() for entry in entries]


def test_a_chats_entries_add_up_to_its_text(tiny: OpenAI) -> None:
    choice = tiny.chat.completions.create(**CHAT, logprobs=True, top_logprobs=3).choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None
    entries = choice.logprobs.content

    data = b"".join(bytes(entry.bytes or ()) for entry in entries)
    assert data.decode() == choice.message.content
    assert [len(entry.top_logprobs) for entry in entries] == [3] * len(entries)
    for entry in entries:  # greedy: the drawn one is the likeliest
        assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (
            entry.token,
            entry.logprob,
        )
        assert entry.logprob <= 0
        likeliest = [top.logprob for top in entry.top_logprobs]
        assert likeliest == sorted(likeliest, reverse=True)


@pytest.mark.parametrize("stop", [None, "model"])
def test_a_streams_entries_are_the_whole_answers(tiny: OpenAI, stop: str | None) -> None:
    asked = {**CHAT, "logprobs": True, "top_logprobs": 2, "stop": stop}
    whole = tiny.chat.completions.create(**asked).choices[0]
    with tiny.chat.completions.create(**asked, stream=True) as stream:
        pieces = [chunk.choices[0] for chunk in stream]

    said = [e for piece in pieces if piece.logprobs for e in piece.logprobs.content or ()]
    assert whole.logprobs is not None
    assert [e.token for e in said] == [e.token for e in whole.logprobs.content or ()]
    text = "".join(piece.delta.content or "" for piece in pieces)
    assert text == whole.message.content
    if stop:
        assert stop not in text
        shown = b"".join(bytes(entry.bytes or ()) for entry in said)
        assert shown.decode(errors="replace").startswith(text)


def test_without_a_number_no_likeliest_are_told(tiny: OpenAI) -> None:
    choice = tiny.chat.completions.create(**CHAT, logprobs=True).choices[0]

    assert choice.logprobs is not None and choice.logprobs.content
    assert all(entry.top_logprobs == [] for entry in choice.logprobs.content)


def test_the_end_of_an_answer_has_an_entry_in_completions_and_none_in_chats(
    tiny: OpenAI, tiny_node: Node
) -> None:
    asked = {**CHAT, "max_tokens": 120}
    chat = tiny.chat.completions.create(**asked, logprobs=True)
    prompt = tiny_node.post("/apply-template", asked).json()["prompt"]
    raw = {**TEXT, "prompt": prompt, "max_tokens": 120, "logprobs": 0}
    completion = tiny.completions.create(**raw, extra_body={"add_special_tokens": False})

    listed, columns = chat.choices[0].logprobs, completion.choices[0].logprobs
    assert listed is not None and columns is not None
    entries, tokens = listed.content or [], columns.tokens or []
    assert chat.choices[0].finish_reason == completion.choices[0].finish_reason == "stop"
    assert tokens == [*(entry.token for entry in entries), "<|im_end|>"]
    assert "".join(tokens[:-1]) == completion.choices[0].text == chat.choices[0].message.content
    assert chat.usage is not None and completion.usage is not None
    assert [chat.usage.completion_tokens, completion.usage.completion_tokens] == [len(tokens)] * 2


@pytest.mark.parametrize("n", [1, 3])
def test_a_completions_columns_add_up_to_its_text_streamed_or_not(tiny: OpenAI, n: int) -> None:
    asked = {**TEXT, "temperature": 1, "seed": 8, "max_tokens": 12, "logprobs": 2, "n": n}
    whole = tiny.completions.create(**asked).choices
    with tiny.completions.create(**asked, stream=True) as stream:
        pieces = [chunk.choices[0] for chunk in stream]

    assert len(whole) == n
    for choice in whole:
        columns = choice.logprobs
        assert columns is not None and columns.tokens is not None
        offsets, top = columns.text_offset or [], columns.top_logprobs or []
        said = columns.tokens[: -1 if choice.finish_reason == "stop" else None]
        assert "".join(said) == choice.text
        assert offsets == [len("".join(columns.tokens[:i])) for i in range(len(columns.tokens))]
        for token, thought, table in zip(
            columns.tokens, columns.token_logprobs or [], top, strict=True
        ):
            assert table[token] == thought
            assert len(table) in (2, 3)
        mine = [p.logprobs for p in pieces if p.index == choice.index and p.logprobs]
        assert [token for part in mine for token in part.tokens or ()] == columns.tokens
        assert [at for part in mine for at in part.text_offset or ()] == offsets


def test_a_text_scored_has_the_log_probabilities_that_it_was_written_with(tiny: OpenAI) -> None:
    written = tiny.completions.create(
        **TEXT, max_tokens=10, logprobs=0, extra_body={"return_token_ids": True}
    )
    facts = written.choices[0].model_dump()
    before, said = facts["prompt_token_ids"], facts["token_ids"]

    scored = tiny.completions.create(
        model="tiny", prompt=[*before, *said], max_tokens=0, echo=True, logprobs=0
    )

    columns = scored.choices[0].logprobs
    assert columns is not None and columns.token_logprobs is not None
    assert columns.token_logprobs[0] is None
    assert len(columns.token_logprobs) == len(before) + len(said)
    assert columns.token_logprobs[len(before) :] == pytest.approx(
        facts["logprobs"]["token_logprobs"], abs=CLOSE
    )
    assert scored.choices[0].finish_reason == "length"
    assert scored.choices[0].text.endswith(facts["text"])
    assert scored.usage is not None
    assert (scored.usage.prompt_tokens, scored.usage.completion_tokens) == (
        len(before) + len(said),
        0,
    )


def test_harnesses_find_one_token_more_than_they_scored_even_if_it_is_the_end(
    tiny_node: Node,
) -> None:
    """They ask for one token after the text, and drop the last entry."""
    end = tiny_end()
    body = {"model": "tiny", "prompt": [5, 6, 7, 8], "max_tokens": 1, "echo": True, "logprobs": 1}

    for bias in ({}, {str(end): 100}):
        [choice] = tiny_node.post("/v1/completions", {**body, "logit_bias": bias}).json()["choices"]
        assert len(choice["logprobs"]["token_logprobs"]) == 5
        assert choice["finish_reason"] == ("stop" if bias else "length")


def tiny_end() -> int:
    return min(load_tokenizer(BUILT_IN_MODELS / "tiny").eos_ids)


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_is_the_prompt_as_it_was_written(tiny_node: Node, stream: bool) -> None:
    body = {**TEXT, "max_tokens": 6, "n": 2, "echo": True, "logprobs": 1, "stream": stream}
    plain = tiny_node.post("/v1/completions", {**TEXT, "max_tokens": 6}).json()
    response = tiny_node.post("/v1/completions", body)
    said = events(response) if stream else [response.json()]
    choices = [c for event in said if event != "[DONE]" for c in event["choices"]]

    for index in (0, 1):
        mine = [choice for choice in choices if choice["index"] == index]
        text = "".join(choice["text"] for choice in mine)
        assert text == TEXT["prompt"] + plain["choices"][0]["text"]
        columns = [choice["logprobs"] for choice in mine if choice["logprobs"]]
        thoughts = [t for part in columns for t in part["token_logprobs"]]
        assert thoughts[0] is None and None not in thoughts[1:]
        assert "".join(token for part in columns for token in part["tokens"]) == text
        offsets = [at for part in columns for at in part["text_offset"]]
        assert offsets == sorted(offsets)


def test_a_chats_prompt_can_be_looked_at_too(tiny: OpenAI) -> None:
    answer = tiny.chat.completions.create(
        **CHAT, extra_body={"prompt_logprobs": 1, "return_token_ids": True}
    )
    facts = answer.model_dump()

    told, ids = facts["prompt_logprobs"], facts["prompt_token_ids"]
    assert answer.usage is not None
    assert len(told) == len(ids) == answer.usage.prompt_tokens
    assert told[0] is None
    for token, ranked in zip(ids[1:], told[1:], strict=True):
        entry = ranked[str(token)]
        assert entry["rank"] >= 1 and entry["logprob"] <= 0
        assert isinstance(entry["decoded_token"], str)
        assert 1 in {one["rank"] for one in ranked.values()}


def test_prompts_of_one_request_are_told_apart(tiny: OpenAI) -> None:
    together = tiny.completions.create(
        model="tiny", prompt=["Once upon", "What is"], max_tokens=0, echo=True, logprobs=0, n=2
    )
    alone = [
        tiny.completions.create(model="tiny", prompt=text, max_tokens=0, echo=True, logprobs=0)
        for text in ("Once upon", "What is")
    ]

    assert [choice.text for choice in together.choices] == [
        "Once upon",
        "Once upon",
        "What is",
        "What is",
    ]
    for choice in together.choices:
        mine, other = choice.logprobs, alone[choice.index // 2].choices[0].logprobs
        assert mine is not None and other is not None
        assert mine.tokens == other.tokens
        assert (mine.token_logprobs or [])[1:] == pytest.approx(
            (other.token_logprobs or [])[1:], abs=CLOSE
        )
