"""How guards are asked, and what their answers mean: no model is run."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.core.errors import InvalidValue, SafetyUnavailable
from llmhost.safety.guards.conversation import (
    ASSISTANT,
    USER,
    Turn,
    alone,
    answered,
    asked_of_messages,
    turns_of,
)
from llmhost.safety.guards.form import Form, Question
from llmhost.safety.guards.forms import FORMS
from llmhost.safety.guards.labels import OPENAI, categories_of, scores_of
from llmhost.safety.guards.said import Said, shares

ASKED = (Turn(USER, "first"), Turn(ASSISTANT, "an answer"), Turn(USER, "Make it LOUD"))
TOLD = (Turn(USER, "a question"), Turn(ASSISTANT, "the last answer"))


def told(*tokens: str, likely: dict[str, float] | None = None, at: int = 0) -> Said:
    """An answer whose token `at` could have been each of `likely`, by its probability."""
    alternatives = tuple((text, math.log(p)) for text, p in (likely or {}).items())
    others = tuple(alternatives if i == at else ((token, 0.0),) for i, token in enumerate(tokens))
    return Said("".join(tokens), tokens, others)


def only(form: Form) -> Question:
    return form.questions(alone("x"), is_own=True)[0]


# ------------------------------------------------------------ conversations

ROLES = st.sampled_from(["system", "user", "assistant", "tool", "developer"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": st.text(max_size=8)}))


@given(MESSAGES)
def test_turns_alternate_and_begin_with_the_user_whatever_is_sent(
    messages: list[dict[str, Any]],
) -> None:
    turns = turns_of(messages)

    assert [turn.role for turn in turns] == [
        USER if i % 2 == 0 else ASSISTANT for i in range(len(turns))
    ]
    for message in messages:
        if message["content"].strip():
            assert any(message["content"] in turn.text for turn in turns)


def test_every_turn_of_the_user_is_judged_with_what_came_before_it() -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "one"}]},
        {"role": "assistant", "content": "two"},
        {"role": "tool", "content": "three"},
    ]

    asked = asked_of_messages(messages)

    assert asked == [
        (Turn(USER, "Be kind.\none"),),
        (Turn(USER, "Be kind.\none"), Turn(ASSISTANT, "two"), Turn(USER, "three")),
    ]
    assert answered(messages, "four")[-1] == Turn(ASSISTANT, "four")


BEGUN = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Take a kni"}]


def test_a_beginning_of_the_answer_is_the_callers_and_is_judged() -> None:
    begun = (Turn(USER, "hi"), Turn(ASSISTANT, "Take a kni"))

    assert asked_of_messages(BEGUN) == [begun[:1], begun]


def test_thoughts_that_a_caller_sends_are_judged_with_the_turn() -> None:
    thought = {"role": "assistant", "content": "Sure.", "reasoning_content": "He wants a knife."}

    assert turns_of([BEGUN[0], thought])[-1].text == "He wants a knife.\nSure."


def test_an_answer_is_one_turn_with_what_it_goes_on_with() -> None:
    assert answered(BEGUN, "fe", is_continued=True)[-1] == Turn(ASSISTANT, "Take a knife")
    assert answered(BEGUN, "fe")[-1] == Turn(ASSISTANT, "Take a kni\nfe")


@given(MESSAGES, st.text(min_size=1))
def test_turns_alternate_up_to_the_answer(messages: list[dict[str, Any]], answer: str) -> None:
    turns = answered(messages, answer)

    assert turns[-1].role == ASSISTANT
    assert all(one.role != other.role for one, other in pairwise(turns))


def test_calls_of_tools_are_what_the_assistant_said() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    turns = turns_of(
        [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    )
    assert turns[1] == Turn(ASSISTANT, 'f({"a": 1})')


# ------------------------------------------------------------ what is asked


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("is_own", [True, False])
@pytest.mark.parametrize("conversation", [ASKED, TOLD])
def test_the_last_turn_is_shown_and_each_question_may_find_something(
    name: str, is_own: bool, conversation: tuple[Turn, ...]
) -> None:
    form = FORMS[name]
    questions = form.questions(conversation, is_own=is_own)

    assert questions
    for question in questions:
        assert conversation[-1].text in str(question.messages)
        assert question.category is None or question.category in form.categories


@pytest.mark.parametrize("name", FORMS)
def test_roles_alternate_for_templates_that_refuse_others(name: str) -> None:
    for question in FORMS[name].questions(ASKED, is_own=True):
        roles = [message["role"] for message in question.messages]
        assert roles == [USER if i % 2 == 0 else ASSISTANT for i in range(len(roles))]


def test_shield_gemma_is_asked_about_each_of_its_policies_in_its_templates_own_variable() -> None:
    questions = FORMS["shieldgemma"].questions(TOLD, is_own=True)

    assert [q.category for q in questions] == ["illicit", "harassment", "hate", "sexual"]
    assert questions[1].kwargs["guideline"].startswith('"No Harassment": The chatbot shall not')
    assert len(questions[0].messages) == 2


def test_granite_guardian_is_named_each_risk_and_shown_no_more_than_one_exchange() -> None:
    questions = FORMS["granite-guardian"].questions(ASKED, is_own=True)

    assert len(questions) == 6
    assert questions[0].kwargs["guardian_config"]["risk_name"] == "violence"
    assert all(len(q.messages) == 1 for q in questions)  # three would be a call of a tool
    about_answers = FORMS["granite-guardian"].questions(TOLD, is_own=True)
    assert "injection" not in {q.category for q in about_answers}


# ------------------------------------------------------------ what is answered


@pytest.mark.parametrize("name", ["llama-guard-3", "llama-guard-4"])
def test_llama_guards_codes_become_categories_with_the_certainty_of_unsafe(name: str) -> None:
    form = FORMS[name]
    said = told("\n\n", "unsafe", "\n", "S1", ",", "S10", likely={"unsafe": 0.8, "safe": 0.2}, at=1)

    assert form.scores(only(form), said) == {
        "violence": pytest.approx(0.8),
        "hate": pytest.approx(0.8),
    }


def test_a_safe_answer_still_says_how_sure_it_is() -> None:
    form = FORMS["llama-guard-3"]
    said = told("safe", likely={"safe": 0.9, "un": 0.1})

    assert form.scores(only(form), said) == {"unsafe": pytest.approx(0.1)}


def test_an_answer_without_likelihoods_is_quite_sure() -> None:
    form = FORMS["llama-guard-3"]
    assert form.scores(only(form), Said("\n\nunsafe\nS9")) == {"illicit/violent": 1.0}
    assert form.scores(only(form), Said("safe")) == {"unsafe": 0.0}


def test_qwen_guards_levels_are_weighed() -> None:
    form = FORMS["qwen3guard"]
    levels = {" Unsafe": 0.5, " Controversial": 0.5}
    said = told(
        *("Safety", ":", " Unsafe", "\n", "Categories:", " Non-violent Illegal Acts, PII"),
        likely=levels,
        at=2,
    )

    assert form.scores(only(form), said) == {
        "illicit": pytest.approx(0.75),
        "pii": pytest.approx(0.75),
    }
    safe = Said("Safety: Safe\nCategories: None\nRefusal: No")
    assert form.scores(only(form), safe) == {"unsafe": 0.0}


@pytest.mark.parametrize("name", ["shieldgemma", "granite-guardian"])
def test_yes_and_no_are_weighed_against_each_other_alone(name: str) -> None:
    form = FORMS[name]
    question = only(form)
    said = told("No", likely={"No": 0.3, "Yes": 0.1, "Maybe": 0.6})

    assert form.scores(question, said) == {question.category: pytest.approx(0.25)}


def test_the_newest_granite_guardian_writes_its_answer_in_a_score() -> None:
    form = FORMS["granite-guardian"]
    said = told("<score>", " yes", " </score>", likely={" yes": 0.9, " no": 0.1}, at=1)

    assert form.scores(only(form), said)["violence"] == pytest.approx(0.9)


def test_any_model_may_name_categories_in_words() -> None:
    form = FORMS["chat"]
    assert form.scores(only(form), Said("Unsafe: violence, self-harm.")) == {
        "violence": 1.0,
        "self-harm": 1.0,
    }
    assert form.scores(only(form), Said("unsafe")) == {"unsafe": 1.0}


@pytest.mark.parametrize("name", FORMS)
def test_an_answer_that_says_neither_is_no_verdict(name: str) -> None:
    form = FORMS[name]
    with pytest.raises(SafetyUnavailable, match="can't be read"):
        form.scores(only(form), Said("What a lovely day, Sam."))


@given(st.text(max_size=40))
def test_whatever_is_said_has_shares_that_add_up_or_is_refused(text: str) -> None:
    try:
        found = shares(Said(text), ("safe", "unsafe"))
    except SafetyUnavailable:
        return
    assert sum(found.values()) == pytest.approx(1)


# ------------------------------------------------------------ labels


def test_labels_of_published_classifiers_have_openai_names() -> None:
    labels = ("OK", "H", "identity_hate", "Severe_Toxic", "SH", "violence/graphic")
    assert categories_of(labels, {}, model="m") == (
        *(None, "hate", "hate", "harassment", "self-harm", "violence/graphic"),
    )
    assert set(OPENAI) == set(categories_of(OPENAI, {}, model="m"))


def test_labels_that_say_nothing_are_named_in_the_settings_or_refused() -> None:
    with pytest.raises(InvalidValue, match=r"models\.guard\.guard_labels"):
        categories_of(("LABEL_0", "LABEL_1"), {}, model="guard")
    named = {"LABEL_0": "", "LABEL_1": "injection"}
    assert categories_of(("LABEL_0", "LABEL_1"), named, model="guard") == (None, "injection")


def test_of_two_labels_that_mean_the_same_the_likelier_counts() -> None:
    assert scores_of(("hate", None, "hate"), (0.2, 0.9, 0.4)) == {"hate": 0.4}
