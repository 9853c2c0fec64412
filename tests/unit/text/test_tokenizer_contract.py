"""What every tokenizer promises, run on all of them."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.core.ports import TextWatch, Tokenizer
from llmhost.text.words import WordTokenizer

TEXT = "the quick brown fox says hello to the lazy dog, and then it stops."


CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content or '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece", "metaspace", "words"])
def tokenizer(request: pytest.FixtureRequest, load: Callable[..., Tokenizer]) -> Tokenizer:
    if request.param == "words":
        return WordTokenizer(1000)
    return load(request.param, tokenizer_config={"chat_template": CHAT})


def say(watch: TextWatch, tokens: list[int]) -> str:
    return "".join(map(watch.push, tokens)) + watch.flush()


def test_ids_are_inside_the_vocabulary(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(TEXT)

    assert tokens
    assert all(isinstance(t, int) and 0 <= t < tokenizer.vocab_size for t in tokens)


def test_encoding_is_repeatable(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(TEXT) == tokenizer.encode(TEXT)


def test_no_text_has_no_tokens_besides_special_ones(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("", add_special_tokens=False) == []
    assert tokenizer.decode([]) == ""
    assert say(tokenizer.watch(), []) == ""


def test_decoding_takes_any_sequence(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(TEXT)

    assert tokenizer.decode(tuple(tokens)) == tokenizer.decode(tokens)


def test_ids_that_do_not_exist_say_nothing(tokenizer: Tokenizer) -> None:
    tokens, unknown = tokenizer.encode(TEXT), tokenizer.vocab_size

    assert tokenizer.decode([unknown, *tokens, unknown]) == tokenizer.decode(tokens)
    assert say(tokenizer.watch(), [unknown, *tokens]) == tokenizer.decode(tokens)


@settings(deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_can_be_encoded_and_watched(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False)

    assert say(tokenizer.watch(), tokens) == tokenizer.decode(tokens)


@settings(deadline=None)
@given(text=st.text(max_size=60))
def test_bytes_of_tokens_add_up_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    """But for the space before the first word, which belongs to its token and not to the text."""
    tokens = tokenizer.encode(text, add_special_tokens=False)
    joined = b"".join(map(tokenizer.token_bytes, tokens)).decode(errors="replace")

    assert tokenizer.decode(tokens) in (joined, joined.removeprefix(" "))


def test_an_unknown_id_has_no_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""


def test_encoding_a_decoded_text_gives_its_tokens_again(tokenizer: Tokenizer) -> None:
    once = tokenizer.decode(tokenizer.encode(TEXT, add_special_tokens=False))
    tokens = tokenizer.encode(once, add_special_tokens=False)

    assert tokenizer.decode(tokens) == once


def test_a_watch_stops_right_before_a_stop_string(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    text = tokenizer.decode(tokens)
    stop = text[10:14]
    watch = tokenizer.watch([stop, "never"])

    assert say(watch, tokens) == text[: text.index(stop)]
    assert watch.is_stopped


def test_a_watch_without_stop_strings_never_stops(tokenizer: Tokenizer) -> None:
    watch = tokenizer.watch()

    say(watch, tokenizer.encode(TEXT))

    assert not watch.is_stopped


def test_the_ids_that_end_an_answer_are_ids(tokenizer: Tokenizer) -> None:
    assert isinstance(tokenizer.eos_ids, frozenset)
    assert all(0 <= token < tokenizer.vocab_size for token in tokenizer.eos_ids)


@pytest.mark.parametrize(
    "content", ["hi", None, "", [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]]
)
def test_a_chat_becomes_prompt_text(tokenizer: Tokenizer, content: Any) -> None:
    messages = [{"role": "user", "content": content}]

    text = tokenizer.render_chat(messages, tools=None, unknown_switch=True)

    assert text.startswith("user: hi" if content else "user: ")
    assert text.endswith("assistant:")
    without = tokenizer.render_chat(messages, add_generation_prompt=False)
    assert not without.endswith("assistant:")
