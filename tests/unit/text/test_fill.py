"""Filling in the middle: how each family of models is asked for it, and which are not."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.pipeline.node import asks

from llmhost.core.errors import UnsupportedParameter
from llmhost.core.ports import FillMarks, Marks
from llmhost.core.request import GenerationRequest
from llmhost.pipeline.terms import terms_of
from llmhost.text.fill import SPELLINGS, fill_marks
from llmhost.text.words import WordTokenizer


class Letters(WordTokenizer):
    """Begins texts with the id 1, and what follows on nothing with a space, as SentencePiece does."""

    def __init__(self, fill: FillMarks | None) -> None:
        super().__init__(4096)
        self._fill = fill

    @property
    def marks(self) -> Marks:
        return Marks(fill=self._fill)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [ord(char) for char in (text and f" {text}")]


IN_ORDER = FillMarks(2, 3, 4, frozenset({2, 3, 4, 5}))
BACKWARDS = FillMarks(2, 3, None, frozenset({2, 3}), is_joined=True)


def wanted(**facts: Any) -> GenerationRequest:
    return asks(prompts=("a",), suffix="b", **facts)


def prompt(fill: FillMarks, **facts: Any) -> Sequence[int]:
    return terms_of(wanted(**facts), Letters(fill)).prompts[0]


def test_what_is_before_and_behind_stands_where_the_model_was_taught_to_look() -> None:
    assert prompt(IN_ORDER) == (1, 2, 32, ord("a"), 3, 32, ord("b"), 4)
    assert prompt(BACKWARDS) == (1, 3, ord("b"), 2, 32, ord("a"))
    assert prompt(IN_ORDER, add_special_tokens=False)[0] == 2
    ids = replace(wanted(), prompts=((7, 8),))
    assert terms_of(ids, Letters(IN_ORDER)).prompts == ((1, 2, 7, 8, 3, 32, ord("b"), 4),)


def test_such_an_answer_ends_where_the_model_would_begin_another_text() -> None:
    assert terms_of(wanted(stop_token_ids=(9,)), Letters(IN_ORDER)).stop_ids == {2, 3, 4, 5, 9}


def test_a_model_without_such_tokens_refuses_by_name() -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        terms_of(wanted(), Letters(None))

    assert refused.value.param == "suffix"


def test_rules_read_what_comes_behind_the_gap() -> None:
    assert wanted().texts == ["a", "b"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_family_is_known_by_all_of_its_tokens(spelling: Any) -> None:
    named = [spelling.prefix, spelling.suffix, spelling.middle, *spelling.ends]
    ids = {text: place for place, text in enumerate(filter(None, named), 10)}

    marks = fill_marks(ids.get)
    assert marks is not None
    assert (marks.prefix, marks.suffix) == (10, 11)
    assert marks.ends == set(ids.values())
    del ids[spelling.suffix]
    assert fill_marks(ids.get) is None
