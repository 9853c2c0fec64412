"""Streamed and whole, the same requests: the same bytes, and as many tokens as are paid for."""

import json
import random
from collections.abc import Callable

import pytest
from server_process import Node
from wholes import faults, some

pytestmark = pytest.mark.bars

ASKED = 1_000
MODELS = """
[models.echo]
engine = "fake"

[models.tiny]
engine = "torch"
source = "builtin:tiny"
[models.tiny.options]
device = "cpu"
threads = 1
"""


def test_a_stream_is_its_whole_answer_and_usage_counts_its_ids(
    new_node: Callable[..., Node], bar: Callable[[str], None]
) -> None:
    node = new_node(MODELS).start()
    wrong = []
    for number in range(ASKED):
        model = "echo" if number % 4 == 0 else "tiny"
        dice = random.Random(number)
        path, body = some(dice, model, has_forms=model == "tiny", most_tokens=40)
        found = list(faults(node, path, body, number))
        wrong += [(number, each, json.dumps(body)) for each in found]
    taken = sum(entry["outcome"] == "answered" for entry in node.entries())

    bar(f"{ASKED} requests, whole and streamed, {taken} answers: {len(wrong)} differ")
    assert wrong == []
    assert taken > 1.8 * ASKED
    assert node.verified()["ok"]
    assert "Traceback" not in node.log()
