import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.core.errors import Unauthenticated
from llmhost.tenants.tokens import check_form, new_token

BASE62 = string.digits + string.ascii_letters


def refusal(token: str) -> str:
    with pytest.raises(Unauthenticated) as refused:
        check_form(token)
    return refused.value.message


def test_a_key_has_the_documented_form() -> None:
    public_id, token = new_token()
    assert re.fullmatch(r"lh-sk-[0-9A-Za-z]{12}-[0-9A-Za-z]{49}", token)
    assert token.split("-")[2] == public_id
    check_form(token)


def test_keys_differ() -> None:
    tokens = [new_token() for _ in range(200)]
    assert len({public_id for public_id, _ in tokens}) == 200
    assert len({token for _, token in tokens}) == 200


@given(st.integers(6, 67), st.sampled_from(BASE62))
def test_any_single_wrong_character_is_noticed(place: int, letter: str) -> None:
    _, token = new_token()
    wrong = token[:place] + letter + token[place + 1 :]
    if wrong != token:
        assert "mistyped" in refusal(wrong)


@given(st.integers(6, 66))
def test_swapped_neighbours_are_noticed(place: int) -> None:
    _, token = new_token()
    wrong = token[:place] + token[place + 1] + token[place] + token[place + 2 :]
    if wrong != token:
        assert "mistyped" in refusal(wrong)


@pytest.mark.parametrize("cut", [7, 20, 67])
def test_a_cut_key_is_called_cut(cut: int) -> None:
    assert "looks cut or mistyped: it should be 68 characters" in refusal(new_token()[1][:cut])


@pytest.mark.parametrize("foreign", ["sk-proj-abc", "hello", "Bearer lh-sk-x", "LH-SK-abc"])
def test_a_key_of_another_service_is_told_apart(foreign: str) -> None:
    assert "begin with 'lh-sk-'" in refusal(foreign)


@given(st.text())
def test_no_text_is_repeated_or_breaks_anything(text: str) -> None:
    message = refusal("lh-sk-" + text)
    assert len(text) < 12 or text not in message
