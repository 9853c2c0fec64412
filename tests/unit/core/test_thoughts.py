"""Tokens of thoughts, counted by the tokens that they stand between."""

import re

from hypothesis import given
from hypothesis import strategies as st

from llmhost.core.thoughts import ThoughtIds

ONE = ThoughtIds((1,), (2,))
SEVERAL = ThoughtIds((1, 3, 4), (2, 5))


def test_thoughts_are_counted_with_their_marks() -> None:
    assert ONE.count([9, 9]) == 0
    assert ONE.count([1, 9, 9, 2, 9]) == 4
    assert ONE.count([9, 1, 9, 2, 9, 1, 2]) == 5
    assert SEVERAL.count([1, 3, 1, 3, 4, 9, 2, 9, 2, 5, 9]) == 8


def test_thoughts_that_never_end_are_all_that_follows() -> None:
    assert ONE.count([9, 1, 9, 9]) == 3
    assert ONE.count([9, 9], begun=True) == 2
    assert SEVERAL.count([1, 3, 4]) == 3


def test_an_answer_may_begin_amid_thoughts() -> None:
    assert ONE.count([9, 2, 9, 9], begun=True) == 2
    assert ONE.count([2, 9, 1], begun=True) == 2
    assert ONE.count([], begun=True) == 0


@given(tokens=st.lists(st.sampled_from([1, 2, 3]), max_size=12), begun=st.booleans())
def test_the_count_is_what_an_expression_finds(tokens: list[int], begun: bool) -> None:
    text = "".join(map(str, tokens))
    found = re.findall("1[13]*(?:2|$)" if not begun else "^[13]*(?:2|$)|1[13]*(?:2|$)", text)

    assert ONE.count(tokens, begun=begun) == sum(map(len, found))
