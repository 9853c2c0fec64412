"""Two requests have one key only when they are the same for the same tenants."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.cache.kept import KEYS

from llmhost.cache.keys import Asked, Keys, Place, canonical
from llmhost.core.caller import Caller
from llmhost.core.grammar import GrammarSpec
from llmhost.core.request import GenerationRequest, Kind
from llmhost.core.sampling import Sampling

PLACE = Place(scope="org:acme", org="acme", model="m@1 abc", epoch="default@1")
REQUEST = GenerationRequest(request_id="req_1", kind=Kind.CHAT, model="m")
ASKED = Asked(
    prompts=((1, 2, 3),),
    sampling=Sampling(temperature=0.0),
    most_tokens=8,
    stop_ids=frozenset({9, 4}),
    shown=(),
    grammar=None,
    begins_with_thoughts=False,
    request=REQUEST,
)


def test_the_same_request_of_the_same_tenants_has_the_same_key():
    again = replace(ASKED, request=replace(REQUEST, request_id="req_2", stream=True, user="me"))

    assert KEYS.of_tokens(PLACE, again) == KEYS.of_tokens(PLACE, ASKED)


@pytest.mark.parametrize(
    "changed",
    [
        {"prompts": ((1, 2), (3,))},
        {"prompts": ((1, 2, 4),)},
        {"sampling": Sampling(temperature=0.0, repetition_penalty=1.1)},
        {"sampling": Sampling(temperature=0.5, seed=1)},
        {"sampling": Sampling(temperature=0.0, logprobs=2)},
        {"most_tokens": 9},
        {"stop_ids": frozenset({9})},
        {"shown": ("<think>",)},
        {"grammar": GrammarSpec("regex", "a+")},
        {"begins_with_thoughts": True},
        {"request": replace(REQUEST, stop=("x",))},
        {"request": replace(REQUEST, n=2)},
        {"request": replace(REQUEST, min_tokens=2)},
        {"request": replace(REQUEST, ignore_eos=True)},
        {"request": replace(REQUEST, tells_stop=True)},
    ],
    ids=str,
)
def test_whatever_changes_an_answer_changes_the_key(changed: dict[str, Any]):
    assert KEYS.of_tokens(PLACE, replace(ASKED, **changed)) != KEYS.of_tokens(PLACE, ASKED)


@pytest.mark.parametrize("name", ["scope", "model", "epoch"])
def test_another_tenant_model_or_policy_has_another_key(name: str):
    other = replace(PLACE, **{name: "other"})

    assert KEYS.of_tokens(other, ASKED) != KEYS.of_tokens(PLACE, ASKED)


def test_another_node_has_other_keys():
    assert Keys(b"x" * 32).of_tokens(PLACE, ASKED) != KEYS.of_tokens(PLACE, ASKED)


def test_at_temperature_0_filters_and_seed_change_nothing():
    plain = Sampling(temperature=0.0)

    assert canonical(Sampling(temperature=0.0, top_p=0.5, top_k=3, min_p=0.1, seed=7)) == plain
    assert canonical(Sampling(temperature=1.0, seed=7)).seed == 7


names = st.text("ab:\0", min_size=1, max_size=4)
callers = st.builds(
    Caller, st.none() | names, names, st.none() | names
)  # names that look like scopes of others are among them
widths = st.sampled_from(["key", "team", "org"])


@given(callers, callers, widths)
def test_no_two_organisations_ever_share_a_key(one: Caller, other: Caller, width: str):
    mine, theirs = (
        KEYS.of_tokens(replace(PLACE, scope=caller.scope(width), org=caller.org), ASKED)
        for caller in (one, other)
    )

    if one.scope(width) != other.scope(width):
        assert mine != theirs
    if width != "key" and one.org != other.org:
        assert mine != theirs


@given(
    st.lists(st.lists(st.integers(0, 300)), max_size=3),
    st.lists(st.lists(st.integers(0, 300)), max_size=3),
)
def test_prompts_that_differ_have_different_keys(one: list[list[int]], other: list[list[int]]):
    def key(prompts: list[list[int]]) -> str:
        return KEYS.of_tokens(PLACE, replace(ASKED, prompts=tuple(map(tuple, prompts))))

    assert (key(one) == key(other)) == (one == other)


def test_words_find_the_same_tokens_only_for_the_same_words():
    chat = replace(REQUEST, messages=({"role": "user", "content": "hello"},))
    other = replace(REQUEST, messages=({"role": "user", "content": "hello "},))

    assert KEYS.of_words(PLACE, chat) == KEYS.of_words(PLACE, replace(chat, request_id="req_2"))
    assert KEYS.of_words(PLACE, chat) != KEYS.of_words(PLACE, other)


def test_a_value_opens_under_its_own_key_alone():
    sealed = KEYS.seal("a", b"value")

    assert KEYS.opened("a", sealed) == b"value"
    assert KEYS.opened("b", sealed) is None
    assert KEYS.opened("a", sealed[:-1]) is None
    assert Keys(b"x" * 32).opened("a", sealed) is None
    assert KEYS.opened("a", b"") is None
