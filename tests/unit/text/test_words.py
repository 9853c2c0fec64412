"""The tokenizer that needs no files."""

import time
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.text.words import SYLLABLES, WordTokenizer, words


@pytest.mark.parametrize("count", [1, 2, 1000, 4096, 4097, 20_000])
def test_all_words_are_distinct_and_can_be_said(count: int) -> None:
    made = words(count)

    assert len(set(made)) == len(made) == count
    assert all(word.isalpha() and word.islower() for word in made)
    assert all(word[:2] in SYLLABLES and word[-2:] in SYLLABLES for word in made)


def test_the_list_is_the_same_in_every_process() -> None:
    assert words(4096)[:3] == ("baba", "babe", "babi")
    assert words(4096)[-1] == "jojo"


def test_a_large_vocabulary_is_made_at_once() -> None:
    began = time.process_time()
    WordTokenizer(4096)
    assert time.process_time() - began < 0.03


@settings(deadline=None)
@given(text=st.text(max_size=60))
def test_any_word_gets_an_id_by_its_hash(text: str) -> None:
    tokenizer = WordTokenizer(50)
    own = words(50)

    assert tokenizer.encode(text) == [
        own.index(word) if word in own else crc32(word.encode()) % 50 for word in text.split()
    ]


@settings(deadline=None)
@given(tokens=st.lists(st.integers(0, 4095)))
def test_its_own_words_come_back_as_they_were(tokens: list[int]) -> None:
    tokenizer = WordTokenizer(4096)

    assert tokenizer.encode(tokenizer.decode(tokens)) == tokens


def test_the_first_word_has_no_space_before_it() -> None:
    watch = WordTokenizer(4096).watch()

    assert [watch.push(0), watch.push(1), watch.push(1), watch.flush()] == [
        "baba",
        " babe",
        " babe",
        "",
    ]


def test_a_chat_is_one_line_per_message() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}],
        },
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}, "odd"]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool"},
    ]

    assert WordTokenizer(10).render_chat(messages, tools=[{}], enable_thinking=True) == (
        "system: be brief\nuser: a b\nuser: \nassistant: \ntool: \nassistant:"
    )
    assert WordTokenizer(10).render_chat(messages[:1], add_generation_prompt=False) == (
        "system: be brief"
    )


def test_no_word_ends_an_answer() -> None:
    assert WordTokenizer(10).eos_ids == frozenset()
