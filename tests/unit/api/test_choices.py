"""Refusals say what a field may be."""

from typing import Literal

import msgspec
import pytest

from llmhost.api.choices import choices
from llmhost.api.loose import loose, read_body
from llmhost.core.errors import InvalidValue


class Tool(msgspec.Struct):
    kind: Literal["a", "b"]


class Body(msgspec.Struct):
    level: Literal["low", "high"] | None = None
    tools: list[Tool] = []
    by_name: dict[str, Literal["p", "q"]] = {}
    of_name: dict[Literal["only"], int] = {}


@pytest.mark.parametrize(
    ("raw", "param", "text"),
    [
        (b'{"level": "odd"}', "level", "level: Invalid enum value 'odd'; it may be high, low"),
        (
            b'{"tools": [{"kind": "a"}, {"kind": "z"}]}',
            "tools[1].kind",
            "tools[1].kind: Invalid enum value 'z'; it may be a, b",
        ),
        (b'{"by_name": {"x": "r"}}', "by_name", "by_name: Invalid enum value 'r'; it may be p, q"),
        (b'{"of_name": {"x": 1}}', "of_name", "of_name: Invalid enum value 'x'"),
        (b'{"level": 3}', "level", "level: Expected 'str | null', got 'int'"),
    ],
)
def test_a_refused_word_is_answered_by_those_that_are_taken(
    raw: bytes, param: str, text: str
) -> None:
    with pytest.raises(InvalidValue) as refused:
        read_body(raw, Body)
    assert (str(refused.value), refused.value.param) == (text, param)


def test_a_field_that_was_kept_as_text_says_it_too() -> None:
    with pytest.raises(InvalidValue, match="it may be a, b"):
        loose(msgspec.Raw(b'[{"kind": "z"}]'), list[Tool], "tools")


def test_a_place_without_a_list_of_words_has_no_choices() -> None:
    assert choices(Body, "tools[]") == choices(Body, "nowhere.at[].all") == ()
