"""The drills of the built-in model: answers stand in the prompt, and what is measured was never taught."""

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.engines.builtin import drills
from llmhost.engines.builtin.draw import Draw, held_out
from llmhost.engines.builtin.drills import Drill

CALL = re.compile(r"<tool_call>\n(.*)\n</tool_call>")
SEEDS = st.integers(0, 2**32)


def of_kinds(seed: int, *kinds: str) -> list[Drill]:
    return drills.drawn(Draw(random.Random(seed)), 20, kinds)


def drawn_values(draw: Draw) -> list[str]:
    return [draw.name(), draw.latin(), draw.place(), str(draw.number())]


@given(SEEDS)
def test_training_never_draws_a_value_that_is_held_out(seed: int):
    values = drawn_values(Draw(random.Random(seed)))

    assert not any(len(value) > 2 and held_out(value) for value in values)


@given(SEEDS)
def test_what_is_measured_was_never_drawn_for_training(seed: int):
    values = drawn_values(Draw(random.Random(seed), measured=True))

    assert all(len(value) < 3 or held_out(value) for value in values)


def test_the_same_seed_gives_the_same_drills_and_another_one_others():
    assert drills.measured(1, 30) == drills.measured(1, 30)
    assert drills.measured(1, 30) != drills.measured(2, 30)


def test_every_kind_is_drawn():
    assert {drill.kind for drill in drills.measured(1, 300)} == set(drills.KINDS)


@settings(max_examples=20)
@given(SEEDS)
def test_a_call_names_a_tool_on_offer_with_its_arguments_out_of_the_question(seed: int):
    for drill in of_kinds(seed, "number", "place", "name", "search", "no arguments"):
        first = drill.asked()[0]
        match = CALL.fullmatch(first.answer)
        assert match and first.tools
        call: dict[str, Any] = json.loads(match[1])
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in first.tools}
        assert list(call["arguments"]) == schemas[call["name"]].get("required", [])
        assert all(
            str(value) in first.messages[-1]["content"] for value in call["arguments"].values()
        )


@settings(max_examples=20)
@given(SEEDS)
def test_an_answer_in_json_has_the_keys_that_the_question_names(seed: int):
    for drill in of_kinds(seed, "json"):
        [known] = drill.asked()
        question = known.messages[-1]["content"]
        assert all(re.search(f"['\"]{key}['\"]", question) for key in json.loads(known.answer))


@settings(max_examples=20)
@given(SEEDS)
def test_an_answer_from_a_tool_repeats_what_the_tool_gave_back(seed: int):
    for drill in of_kinds(seed, "number", "place", "name", "search"):
        for known in drill.asked()[1:]:
            given_back = known.messages[-1]["content"]
            said = (
                given_back
                if given_back[0] != "{"
                else str(next(iter(json.loads(given_back).values())))
            )
            assert said.rstrip(".") in known.answer


@settings(max_examples=20)
@given(SEEDS)
def test_where_no_tool_is_needed_none_is_called(seed: int):
    for drill in of_kinds(seed, "no call"):
        assert drill.conversation.tools
        assert not any(CALL.search(known.answer) for known in drill.asked())


# Where attention is told to look


def longest_future(ids: list[int], place: int) -> int | None:
    """The start of the copy at `place + 1` as the guide's docstring has it, slowly."""
    best, source = 2, None
    for candidate in range(place + 1):
        pairs = zip(ids[candidate:], ids[place + 1 :], strict=False)
        agreed = next(
            (n for n, (here, there) in enumerate(pairs) if here != there), len(ids) - place - 1
        )
        if agreed >= best:
            best, source = agreed, candidate
    return source


def longest_past(ids: list[int], place: int) -> int | None:
    """The source of `ids[place + 1]` as the guide's docstring has it, slowly."""
    best, source = 0, None
    for candidate in range(1, place + 1):
        agreed = 0
        while agreed < candidate and ids[candidate - 1 - agreed] == ids[place - agreed]:
            agreed += 1
        if ids[candidate] == ids[place + 1] and agreed >= max(best, 1):
            best, source = agreed, candidate
    return source


@settings(max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=24))
def test_a_copied_token_comes_from_where_the_past_agrees_longest(ids: list[int]):
    torch = pytest.importorskip("torch")
    from llmhost.engines.builtin import guide

    row = torch.tensor([ids])
    wanted, is_copied = guide.sources(row, torch.ones_like(row, dtype=torch.bool))

    expected = [longest_past(ids, place) for place in range(len(ids) - 1)]
    assert places(wanted, is_copied) == expected


@settings(max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=24))
def test_a_copy_begins_where_most_of_what_follows_agrees(ids: list[int]):
    torch = pytest.importorskip("torch")
    from llmhost.engines.builtin import guide

    row = torch.tensor([ids])
    wanted, is_begun = guide.starts(row, torch.ones_like(row, dtype=torch.bool))

    expected = [longest_future(ids, place) for place in range(len(ids) - 1)]
    assert places(wanted, is_begun) == expected


def places(wanted: Any, counts: Any) -> list[int | None]:
    found = zip(wanted[0].tolist(), counts[0].tolist(), strict=True)
    return [place if is_there else None for place, is_there in found]
