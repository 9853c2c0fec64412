"""What may be drawn and what ends an answer, asked of the built-in model by OpenAI's own client."""

from collections.abc import Callable
from typing import Any

import pytest
from openai import APIError, InternalServerError, OpenAI
from server_process import Node, events

ClientOf = Callable[[Node, str], OpenAI]

GREEDY: dict[str, Any] = {"model": "tiny", "prompt": "Once upon a time", "temperature": 0}


@pytest.fixture
def tiny(tiny_node: Node, client_of: ClientOf) -> OpenAI:
    return client_of(tiny_node, "any")


def ids_of(tiny: OpenAI, **asked: Any) -> list[int]:
    """The token ids of one answer."""
    extra = {"return_token_ids": True, **asked.pop("extra_body", {})}
    answer = tiny.completions.create(**{**GREEDY, "max_tokens": 12, **asked}, extra_body=extra)
    ids: list[int] = answer.choices[0].model_dump()["token_ids"]
    return ids


def test_a_bias_forces_a_token_and_forbids_one(tiny: OpenAI) -> None:
    usual = ids_of(tiny)

    forced = ids_of(tiny, logit_bias={"77": 100})
    other = ids_of(tiny, logit_bias={str(usual[0]): -100})

    assert forced == [77] * 12
    assert usual[0] not in other


def test_only_what_is_allowed_is_drawn(tiny: OpenAI) -> None:
    allowed = [50, 60, 70]

    ids = ids_of(tiny, temperature=2, extra_body={"allowed_token_ids": allowed})

    assert set(ids) <= set(allowed)
    assert len(ids) == 12


def test_a_word_that_is_bad_is_not_said(tiny: OpenAI) -> None:
    usual = tiny.completions.create(**GREEDY, max_tokens=16).choices[0].text
    word = usual.split()[1]

    text = (
        tiny.completions.create(**GREEDY, max_tokens=16, extra_body={"bad_words": [word]})
        .choices[0]
        .text
    )

    assert f" {word} " in f"{usual} "
    assert f" {word} " not in f"{text} "


def test_an_id_ends_the_answer_and_is_no_part_of_it(tiny: OpenAI) -> None:
    usual = ids_of(tiny)
    end = usual[4]

    answer = tiny.completions.create(
        **GREEDY, max_tokens=12, logprobs=0, extra_body={"stop_token_ids": [end]}
    ).choices[0]

    assert answer.finish_reason == "stop"
    assert answer.logprobs is not None
    *said, _ = answer.logprobs.tokens or ()  # the last is the end itself
    assert len(said) == usual.index(end)
    assert "".join(said) == answer.text


def test_an_answer_is_as_long_as_it_must_be(tiny: OpenAI) -> None:
    usual = ids_of(tiny)
    ends = {"stop_token_ids": [usual[2]]}

    short = ids_of(tiny, extra_body=ends)
    long = ids_of(tiny, extra_body={**ends, "min_tokens": 8})

    assert len(short) <= 3
    assert len(long) >= 8
    assert usual[2] not in long[:8]


def test_no_stop_string_counts_before_an_answer_is_long_enough(tiny: OpenAI) -> None:
    text = tiny.completions.create(**GREEDY, max_tokens=12).choices[0].text
    asked = {**GREEDY, "max_tokens": 12, "stop": text[:3]}

    assert tiny.completions.create(**asked).choices[0].text == ""
    assert len(ids_of(tiny, stop=text[:3], extra_body={"min_tokens": 12})) == 12


@pytest.mark.parametrize(
    "penalty", [{"frequency_penalty": 2}, {"presence_penalty": 2}, {"repetition_penalty": 10.0}]
)
def test_penalties_change_what_is_said_after_the_first_token(
    tiny: OpenAI, penalty: dict[str, float]
) -> None:
    few = {"allowed_token_ids": list(range(50, 110))}

    plain = ids_of(tiny, max_tokens=20, extra_body=few)
    other = ids_of(tiny, max_tokens=20, extra_body={**few, **penalty})

    assert other != plain
    assert set(other) <= set(range(50, 110))


def test_the_likeliest_alone_are_drawn_where_others_are_too_unlikely(tiny: OpenAI) -> None:
    assert ids_of(tiny, temperature=2, extra_body={"min_p": 1.0}) == ids_of(tiny)


def test_the_best_of_several_is_the_likeliest_of_them_and_all_are_paid_for(tiny: OpenAI) -> None:
    asked = {"model": "tiny", "prompt": "Once", "max_tokens": 12, "seed": 11, "logprobs": 0}

    every = tiny.completions.create(**asked, n=5)
    best = tiny.completions.create(**asked, n=2, best_of=5)

    def merit(choice: Any) -> float:
        thoughts = choice.logprobs.token_logprobs
        return float(sum(thoughts) / len(thoughts))

    ranked = sorted(every.choices, key=merit, reverse=True)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert [choice.index for choice in best.choices] == [0, 1]
    assert best.usage is not None and every.usage is not None
    assert best.usage.completion_tokens == every.usage.completion_tokens
    assert best.usage.prompt_tokens == every.usage.prompt_tokens


def test_many_choices_share_a_prompt_that_is_paid_for_once(tiny: OpenAI) -> None:
    asked = {"model": "tiny", "prompt": "Once upon a time " * 20, "max_tokens": 4, "seed": 3}
    asked["extra_body"] = {"ignore_eos": True}

    one = tiny.completions.create(**asked)
    many = tiny.completions.create(**asked, n=16)

    assert one.usage is not None and many.usage is not None
    assert many.usage.prompt_tokens == one.usage.prompt_tokens
    assert many.usage.completion_tokens == 16 * one.usage.completion_tokens
    assert many.choices[0].text == one.choices[0].text


def test_a_deadline_ends_an_answer_with_an_error(tiny_node: Node, tiny: OpenAI) -> None:
    asked = {**GREEDY, "max_tokens": 1500, "extra_body": {"ignore_eos": True, "timeout_ms": 150}}

    with pytest.raises(InternalServerError) as late:
        tiny.completions.create(**asked)

    assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")
    assert late.value.response.headers["x-should-retry"] == "false"
    entry = tiny_node.entry(late.value.response.headers["x-request-id"])
    assert (entry["outcome"], entry["code"]) == ("cancelled", "deadline_exceeded")


def test_a_deadline_ends_a_stream_with_an_error_event(tiny_node: Node, tiny: OpenAI) -> None:
    body = {**GREEDY, "max_tokens": 1500, "ignore_eos": True, "timeout_ms": 150, "stream": True}

    *_, last = events(tiny_node.post("/v1/completions", body))
    extra = {"ignore_eos": True, "timeout_ms": 150}
    with pytest.raises(APIError, match="150 ms"):
        for _ in tiny.completions.create(**GREEDY, max_tokens=1500, stream=True, extra_body=extra):
            pass

    assert last["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize(("asked", "got"), [("flex", "flex"), ("priority", "default")])
def test_an_answer_names_the_tier_that_it_got(tiny: OpenAI, asked: Any, got: str) -> None:
    answer = tiny.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=2,
        service_tier=asked,
    )

    assert answer.service_tier == got
