"""Decisions as OpenAI's own client asks for them, of the fake model and of a real one."""

from collections.abc import Callable
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from server_process import Node

ClientOf = Callable[[Node, str], OpenAI]
QUESTIONS: list[Any] = [
    {"type": "predicate", "instructions": "The text asks a question."},
    {
        "type": "choice",
        "instructions": "What is it about?",
        "choices": [{"value": "keys"}, {"value": "weather"}],
    },
]


def test_the_client_reads_decisions(client: OpenAI) -> None:
    decision = client.decisions.create(model="echo", input="hello there", questions=QUESTIONS)

    assert [answer.type for answer in decision.answers] == ["predicate", "choice"]
    assert decision.usage.output_tokens == 0
    with pytest.raises(BadRequestError) as caught:
        client.decisions.create(model="echo", input="hello", questions=[])
    assert caught.value.param == "questions"


def test_a_real_model_decides_the_same_from_its_cache(tiny_node: Node, client_of: ClientOf) -> None:
    text = "How do I make an API key? " * 12
    asked = {"model": "tiny", "input": text, "questions": QUESTIONS}
    fresh, again = [client_of(tiny_node, "any").decisions.create(**asked) for _ in range(2)]

    assert again.usage.input_tokens_details.cached_tokens > 60
    for one, other in zip(fresh.answers, again.answers, strict=True):
        assert one.type == other.type
    assert fresh.answers[0].probability == pytest.approx(again.answers[0].probability, abs=1e-4)
    assert fresh.answers[1].confidence == pytest.approx(again.answers[1].confidence, abs=1e-4)
