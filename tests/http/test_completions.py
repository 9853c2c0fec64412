"""POST /v1/completions, asked by the real OpenAI client."""

from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion
from server_process import Node, events

from llmhost.engines.fake import fake_answer
from llmhost.testing import fake_words
from llmhost.text.words import WordTokenizer

WORDS = WordTokenizer(4096)


def test_a_completion_is_what_the_model_says(client: OpenAI) -> None:
    answer = client.completions.create(model="echo", prompt="once upon a time", max_tokens=6)

    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.choices[0].text == fake_words("once upon a time", 6)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 6)


def test_sixteen_tokens_are_given_when_nothing_is_asked_for(client: OpenAI) -> None:
    answer = client.completions.create(model="echo", prompt="once")

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_token_ids_are_a_prompt(client: OpenAI) -> None:
    ids = [5, 0, 4095]

    answer = client.completions.create(model="echo", prompt=ids, max_tokens=4)

    assert answer.choices[0].text == WORDS.decode(fake_answer(ids, 4, 4096))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3


PROMPTS: list[Any] = [["a b", "c d e", "f"], [[1, 2], [3], [4, 5, 6]]]


@pytest.mark.parametrize("prompts", PROMPTS, ids=["strings", "token ids"])
def test_prompts_and_choices_are_numbered_prompt_by_prompt(client: OpenAI, prompts: Any) -> None:
    answer = client.completions.create(model="echo", prompt=prompts, max_tokens=3, n=2)

    ids = [WORDS.encode(p) if isinstance(p, str) else p for p in prompts]
    wanted = [WORDS.decode(fake_answer(p, 3, 4096)) for p in ids for _ in range(2)]
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.text for choice in answer.choices] == wanted
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(p) for p in ids)
    assert answer.usage.completion_tokens == 18


def test_a_stream_of_several_prompts_keeps_them_apart(open_node: Node) -> None:
    body = {"model": "slow", "prompt": ["a b", "c d e"], "n": 2, "max_tokens": 4, "stream": True}
    response = open_node.post(
        "/v1/completions", {**body, "stream_options": {"include_usage": True}}
    )

    *chunks, last, done = events(response)
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        if choice["finish_reason"] is not None:
            reasons[choice["index"]] = choice["finish_reason"]
    assert done == "[DONE]"
    one, two = fake_words("a b", 4), fake_words("c d e", 4)
    assert texts == {0: one, 1: one, 2: two, 3: two}
    assert reasons == dict.fromkeys(range(4), "length")
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == 5
    assert last["usage"]["completion_tokens"] == 16


async def test_the_async_client_streams_completions(async_client: AsyncOpenAI) -> None:
    text = ""
    async with await async_client.completions.create(
        model="slow", prompt="once upon", max_tokens=5, stream=True
    ) as stream:
        async for chunk in stream:
            text += chunk.choices[0].text

    assert text == fake_words("once upon", 5)


def test_the_types_of_the_client_take_a_body_strictly(open_node: Node) -> None:
    response = open_node.post("/v1/completions", {"model": "echo", "prompt": "x", "n": 2})

    Completion.model_validate_json(response.content, strict=True)
    assert [choice["logprobs"] for choice in response.json()["choices"]] == [None, None]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/completions/"])
def test_a_trailing_slash_makes_no_difference(open_node: Node, path: str) -> None:
    assert open_node.post(path, {"model": "echo", "prompt": "x"}).status_code == 200
