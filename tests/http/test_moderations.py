"""OpenAI's own client asks the built-in guard what is wrong with texts."""

from collections.abc import Callable

import pytest
from openai import BadRequestError, OpenAI
from server_process import Node

LOUD = "I will find out where you live and hurt you, you stupid idiot"
QUIET = "How do I sort a list in Python?"


@pytest.fixture
def client(client_of: Callable[[Node, str], OpenAI], tiny_node: Node) -> OpenAI:
    return client_of(tiny_node, "any")


@pytest.mark.parametrize("model", ["tiny-guard", "omni-moderation-latest"])
def test_texts_are_told_apart_by_category(client: OpenAI, model: str) -> None:
    answer = client.moderations.create(model=model, input=[LOUD, QUIET])

    loud, quiet = answer.results
    assert answer.model == model
    assert loud.flagged and loud.categories.harassment and loud.categories.violence
    assert not quiet.flagged
    assert loud.category_scores.harassment > 0.5 > quiet.category_scores.harassment
    assert loud.category_applied_input_types.harassment == ["text"]
    assert loud.category_applied_input_types.sexual_minors == []


def test_the_declared_guard_is_asked_where_no_model_is_named(client: OpenAI) -> None:
    answer = client.moderations.create(input=[{"type": "text", "text": QUIET}])

    assert answer.model == "tiny-guard"
    [result] = answer.results
    assert result.categories.illicit is False
    assert "injection" in (result.categories.model_extra or {})


def test_images_are_refused_by_name(client: OpenAI) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    with pytest.raises(BadRequestError) as refusal:
        client.moderations.create(input=[image])  # type: ignore[list-item]
    assert refusal.value.param == "input[0].type"


def test_a_model_that_is_no_guard_is_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="not known to be a guard"):
        client.moderations.create(model="tiny", input=QUIET)
