"""The built-in model, as a newcomer meets it: real answers, stops of its own, pieces of characters."""

from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI
from server_process import Node, events, eventually

from llmhost.engines.builtin.corpus import KnownAnswer, known_answers

ClientOf = Callable[[Node, str], OpenAI]

PLAIN = [known for known in known_answers() if known.tools is None and "<" not in known.answer]


@pytest.fixture
def tiny(tiny_node: Node, client_of: ClientOf) -> OpenAI:
    return client_of(tiny_node, "any")


def ask(client: OpenAI, known: KnownAnswer, **more: Any) -> Any:
    messages: Any = known.messages
    return client.chat.completions.create(model="tiny", messages=messages, temperature=0, **more)


def test_the_model_gives_the_answers_that_it_is_known_for(tiny: OpenAI) -> None:
    sample = PLAIN[:: len(PLAIN) // 12]

    said = [ask(tiny, known).choices[0] for known in sample]

    right = sum(c.message.content == k.answer for c, k in zip(said, sample, strict=True))
    assert right >= len(sample) - 1  # a few of all are known to come out otherwise
    assert {choice.finish_reason for choice in said} == {"stop"}


def test_a_stream_is_the_whole_answer_in_pieces(tiny: OpenAI) -> None:
    whole = ask(tiny, PLAIN[0])

    with ask(tiny, PLAIN[0], stream=True, stream_options={"include_usage": True}) as stream:
        *chunks, last = list(stream)

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_stop_string_cuts_a_real_answer(tiny: OpenAI) -> None:
    text = ask(tiny, PLAIN[0]).choices[0].message.content
    stop = text[10:16]

    choice = ask(tiny, PLAIN[0], stop=stop).choices[0]

    assert choice.message.content == text[: text.index(stop)]
    assert choice.finish_reason == "stop"


def test_one_seed_gives_one_answer_and_many_seeds_give_many(tiny: OpenAI) -> None:
    def say(seed: int) -> str:
        answer = tiny.chat.completions.create(
            model="gpt-4o-mini",
            messages=[{"role": "user", "content": "Tell me a story."}],
            temperature=2,
            max_tokens=24,
            seed=seed,
        )
        return answer.choices[0].message.content or ""

    texts = [say(seed) for seed in (1, 1, 2, 3)]

    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_choices_of_one_request_differ_and_all_repeat_with_the_seed(tiny: OpenAI) -> None:
    def say() -> list[str]:
        answer = tiny.completions.create(
            model="tiny", prompt="Once", temperature=2, max_tokens=16, seed=5, n=4
        )
        return [choice.text for choice in answer.choices]

    first, again = say(), say()

    assert first == again
    assert len(set(first)) > 1


def test_pieces_of_characters_are_never_sent(tiny_node: Node) -> None:
    """So hot a model says many bytes that are half a character or none."""
    ids = list(range(300, 340))
    body = {"model": "tiny", "prompt": ids, "temperature": 2, "max_tokens": 200, "seed": 3}

    whole = tiny_node.post("/v1/completions", {**body, "ignore_eos": True}).json()
    stream = tiny_node.post("/v1/completions", {**body, "ignore_eos": True, "stream": True})

    text = "".join(e["choices"][0]["text"] for e in events(stream) if e != "[DONE]")
    assert text == whole["choices"][0]["text"]


@pytest.mark.parametrize("extreme", [{"top_k": 10**30}, {"top_k": 1}, {"top_p": 0}, {"top_p": 1e-300},
                                     {"temperature": 1e-300}, {"temperature": 2}, {"seed": -(10**30)},
                                     {"priority": 10**30}, {"max_tokens": 10**30}])  # fmt: skip
def test_extreme_sampling_is_answered_or_refused_and_never_breaks_the_engine(
    tiny_node: Node, extreme: dict[str, Any]
) -> None:
    body = {"model": "tiny", "prompt": "Once upon", "max_tokens": 3, **extreme}

    response = tiny_node.post("/v1/completions", body)

    assert response.status_code in (200, 400), response.text
    after = tiny_node.post("/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 1})
    assert after.status_code == 200


def test_a_prompt_longer_than_the_window_is_refused(tiny_node: Node) -> None:
    response = tiny_node.post("/v1/completions", {"model": "tiny", "prompt": "word " * 5000})

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_a_client_that_leaves_stops_the_real_engine_too(tiny_node: Node) -> None:
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 1500, "ignore_eos": True}
    with tiny_node.http.stream(
        "POST", f"{tiny_node.url}/v1/completions", json={**body, "stream": True}
    ) as response:
        next(events(response))

    eventually(lambda: tiny_node.is_idle("tiny"), "the sequence goes on")
    entry = tiny_node.entry(response.headers["x-request-id"])
    assert entry["outcome"] == "cancelled"
    assert 1 <= entry["tokens"]["output"] < 1500
