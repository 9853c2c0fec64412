"""Decisions: how questions become sequences that begin alike, and log probabilities become shares."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.pipeline.node import asks

from llmhost.core.errors import ContextTooLong, InvalidValue
from llmhost.core.request import Kind, Question
from llmhost.pipeline.decide import decision_terms, shares
from llmhost.pipeline.terms import Terms
from llmhost.text.words import WordTokenizer

WORDS = WordTokenizer(4096)
USER: dict[str, Any] = {"role": "user", "content": "baba babe babi"}
ANSWERS = ("Yes", "No")


def terms_of(
    *questions: Question, messages: tuple[Any, ...] = (USER,), longest: int = 999
) -> Terms:
    request = asks(kind=Kind.DECISION, prompts=(), messages=messages, questions=questions)
    return decision_terms(request, WORDS, longest)


@given(st.lists(st.floats(min_value=-9999, max_value=0), min_size=2, max_size=9))
def test_shares_are_in_proportion_and_together_1(logprobs: list[float]) -> None:
    found = shares(logprobs)

    assert math.isclose(sum(found), 1, rel_tol=1e-9)
    likeliest = max(range(len(found)), key=lambda i: logprobs[i])
    assert found[likeliest] == max(found)


def test_what_can_not_be_said_at_all_has_no_share() -> None:
    assert shares([-math.inf, -3.0]) == [0.0, 1.0]
    assert shares([-math.inf, -math.inf]) == [0.5, 0.5]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(2, 5))
def test_every_sequence_begins_with_what_it_is_said_to_share(sizes: list[int], count: int) -> None:
    answers = tuple(f"a{i} b{i}" for i in range(count))
    questions = [Question(f"q{i} " * size, answers) for i, size in enumerate(sizes)]

    terms = terms_of(*questions)

    assert len(terms.prompts) == len(questions) * count
    assert terms.shared[0] == 0
    for place, (prompt, shared) in enumerate(zip(terms.prompts, terms.shared, strict=True)):
        before = terms.prompts[:place]
        assert not shared or any(one[:shared] == prompt[:shared] for one in before)
        assert shared <= len(prompt) - terms.answers[place]


def test_a_question_belongs_to_the_users_last_message() -> None:
    (prompt, _) = terms_of(Question("bada", ANSWERS)).prompts
    text = "user: baba babe babi\n\nbada\nassistant: Yes"
    assert list(prompt) == WORDS.encode(text)


def test_behind_an_answer_it_is_a_message_of_its_own() -> None:
    said = ({"role": "user", "content": "baba"}, {"role": "assistant", "content": "babe"})
    (prompt, _) = terms_of(Question("bada", ANSWERS), messages=said).prompts
    text = "user: baba\nassistant: babe\nuser: bada\nassistant: Yes"
    assert list(prompt) == WORDS.encode(text)


def test_what_is_too_long_is_told_by_its_name() -> None:
    short, long = Question("a", ANSWERS), Question("b " * 50, ANSWERS)
    with pytest.raises(ContextTooLong) as caught:
        terms_of(short, long, longest=20)
    assert caught.value.param == "questions[1]"
    with pytest.raises(ContextTooLong) as caught:
        terms_of(short, longest=4)
    assert caught.value.param == "input"


def test_an_answer_without_tokens_is_refused() -> None:
    with pytest.raises(InvalidValue) as caught:
        terms_of(Question("a", ("Yes", " ")))
    assert caught.value.param == "questions[0]"


class Ending(WordTokenizer):
    """Ends answers with a word of its own, as models do."""

    eos_ids = frozenset({7, 9})

    def render_chat(self, messages: Any, **options: Any) -> str:
        return super().render_chat(messages, **options) + (
            "" if options.get("add_generation_prompt", True) else f" {self.decode([9])}"
        )


def test_answers_that_begin_others_are_told_apart_by_their_ends() -> None:
    request = asks(
        kind=Kind.DECISION,
        prompts=(),
        messages=(USER,),
        questions=(Question("q", ("good", "good enough")), Question("q", ANSWERS)),
    )
    terms = decision_terms(request, Ending(4096), 999)

    assert terms.answers == (2, 3, 1, 1)
    assert [prompt[-1] == 9 for prompt in terms.prompts] == [True, True, False, False]
