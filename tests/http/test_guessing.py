"""A model that another one guesses for gives the same answers, and tells how often the guesses were right."""

import re
from collections.abc import Callable
from typing import Any

from openai import OpenAI
from server_process import Node

from llmhost.engines.builtin.corpus import known_answers

PLAIN = [known for known in known_answers() if known.tools is None and "<" not in known.answer]


def figure(node: Node, name: str) -> float:
    line = rf'^{re.escape(name)}{{model_name="guessed@1".*}} (\S+)$'
    found = re.search(line, node.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_answers_are_the_same_with_a_draft_model_and_its_guesses_are_counted(
    tiny_node: Node, client_of: Callable[[Node, str], OpenAI]
) -> None:
    client = client_of(tiny_node, "any")

    def ask(model: str, known: Any, **more: Any) -> Any:
        answer = client.chat.completions.create(
            model=model, messages=known.messages, max_tokens=60, seed=7, **more
        )
        return answer.choices[0].message.content, answer.usage.completion_tokens

    for known in PLAIN[:: len(PLAIN) // 5]:
        for more in ({"temperature": 0}, {"temperature": 1.3, "frequency_penalty": 0.4}):
            assert ask("guessed", known, **more) == ask("tiny", known, **more)

    guesses = figure(tiny_node, "vllm:spec_decode_num_draft_tokens_total")
    right = figure(tiny_node, "vllm:spec_decode_num_accepted_tokens_total")
    assert guesses > 20
    assert right > guesses / 2
    assert figure(tiny_node, "llmhost_operator_seconds_total") > 0
