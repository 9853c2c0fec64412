"""A JSON text's place, however it is cut into tokens."""

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmhost.text.json_place import EXPONENT_DIGITS, NUMBER_DIGITS, JsonPlace

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text('{}[],:"\\e1 é', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"\\'), inner, max_size=3),
    max_leaves=6,
)


@given(value=VALUES, cuts=st.sets(st.integers(0, 300)), spaced=st.booleans())
def test_a_place_does_not_depend_on_the_cuts(value: Any, cuts: set[int], spaced: bool) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1 if spaced else None).encode()
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    place = JsonPlace()

    for a, b in pairwise(places):
        place = place.after(text[a:b])

    assert place == JsonPlace().after(text)
    assert not place.in_string


@given(value=st.text('"\\ab', max_size=8))
def test_a_quote_closes_what_is_no_escape(value: str) -> None:
    said = json.dumps(value).encode()

    for cut in range(1, len(said)):
        place = JsonPlace().after(said[:cut])
        assert place.in_string
        if place.closers:
            json.loads(said[:cut] + b'"')


def test_digits_are_those_of_one_number_or_of_its_exponent() -> None:
    assert JsonPlace().after(b'{"a1":-12.5').digits_left == NUMBER_DIGITS - 3
    assert JsonPlace().after(b"[12,3").digits_left == NUMBER_DIGITS - 1
    assert JsonPlace().after(b"1e-4").digits_left == EXPONENT_DIGITS - 1
    assert JsonPlace().after(b"[1e5,").digits_left == NUMBER_DIGITS
    assert JsonPlace().after(b"[true,").digits_left == NUMBER_DIGITS
    assert JsonPlace().after(b"1" * 50).digits_left == 0
    assert JsonPlace().after(b'{"a":1').closers == (b"}", b"]", b",")
