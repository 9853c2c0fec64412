"""A request in a model's own tokens: how its prompt begins and ends, and what is refused of it."""

from typing import Any

import pytest
from tests.unit.pipeline.node import asks

from llmhost.core.errors import InvalidValue
from llmhost.core.request import GenerationRequest, Kind
from llmhost.core.sampling import Sampling
from llmhost.pipeline.terms import MAX_REPEATED, is_short, terms_of
from llmhost.text.words import WordTokenizer, words

WORDS = WordTokenizer(4096)
KNOWN = words(4096)


class Plain(WordTokenizer):
    """Encodes characters, and begins texts with the id 1."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [ord(char) for char in text]

    def decode(self, tokens: Any, *, skip_special_tokens: bool = True) -> str:
        return "".join(chr(token) for token in tokens if token != 1)


PLAIN = Plain(4096)
USER = {"role": "user", "content": "hi"}


def chat(*messages: dict[str, Any], **facts: Any) -> GenerationRequest:
    return asks(kind=Kind.CHAT, prompts=(), messages=messages, **facts)


def text_of(request: GenerationRequest) -> str:
    return PLAIN.decode(terms_of(request, PLAIN).prompts[0])


def test_a_chat_ends_with_the_beginning_of_an_answer_unless_it_is_told_otherwise() -> None:
    assert text_of(chat(USER)) == "user: hi\nassistant:"
    assert text_of(chat(USER, add_generation_prompt=False)) == "user: hi"


@pytest.mark.parametrize("content", ["The answer is", " The answer is", "The answer is "])
def test_an_answer_can_go_on_with_the_last_message(content: str) -> None:
    begun = {"role": "assistant", "content": content}

    text = text_of(chat(USER, begun, add_generation_prompt=False, continue_final_message=True))

    assert text == f"user: hi\nassistant: {content}"


@pytest.mark.parametrize("content", [None, "", "  "])
def test_nothing_can_not_be_gone_on_with(content: str | None) -> None:
    begun = {"role": "assistant", "content": content}
    with pytest.raises(InvalidValue) as refused:
        text_of(chat(USER, begun, add_generation_prompt=False, continue_final_message=True))

    assert refused.value.param == "continue_final_message"


def test_a_prompt_begins_as_the_tokenizer_has_texts_begin_or_does_not() -> None:
    assert terms_of(asks("hi"), PLAIN).prompts == ((1, 104, 105),)
    assert terms_of(asks("hi", add_special_tokens=False), PLAIN).prompts == ((104, 105),)


def test_the_end_of_a_long_prompt_is_taken() -> None:
    cut = asks("hello", truncate_prompt_tokens=2, echo=True)

    assert terms_of(cut, PLAIN).prompts == ((108, 111),)
    assert terms_of(cut, PLAIN).echoes == ("lo",)
    assert terms_of(asks("hello", truncate_prompt_tokens=9), PLAIN).prompts == ((1, *b"hello"),)
    assert text_of(chat(USER, truncate_prompt_tokens=4)) == "ant:"


def test_a_bad_word_is_bad_at_the_beginning_and_after_a_space() -> None:
    bad = terms_of(asks(bad_words=("no", " no")), PLAIN).sampling.bad_words

    assert bad == ((110, 111), (32, 110, 111))


@pytest.mark.parametrize(
    ("facts", "param"),
    [
        ({"stop_token_ids": (4096,)}, "stop_token_ids"),
        ({"sampling": Sampling(logit_bias=((4096, 1.0),))}, "logit_bias"),
        ({"sampling": Sampling(allowed_token_ids=(1, 4096))}, "allowed_token_ids"),
        ({"prompts": ((1, 4096),)}, "prompt"),
        ({"bad_words": ("fine", " ")}, "bad_words[1]"),
    ],
    ids=str,
)
def test_what_this_model_does_not_know_is_refused_by_name(facts: Any, param: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        terms_of(asks(**facts), WORDS)

    assert refused.value.param == param


def test_as_much_as_is_allowed_may_be_repeated() -> None:
    most = asks(prompts=((1,) * MAX_REPEATED,), echo=True)
    more = asks(prompts=((1,) * MAX_REPEATED, (1,)), echo=True)

    assert terms_of(most, WORDS).prompts
    with pytest.raises(InvalidValue, match="repeat"):
        terms_of(more, WORDS)


@pytest.mark.parametrize(
    "facts",
    [
        {"bad_words": (KNOWN[1],)},
        {"sampling": Sampling(allowed_token_ids=tuple(range(4096)))},
        {"prompts": ((1,) * 5000,)},
    ],
    ids=["bad words", "allowed ids", "prompt"],
)
def test_what_takes_long_to_read_is_not_short(facts: Any) -> None:
    assert is_short(asks())
    assert not is_short(asks(**facts))
