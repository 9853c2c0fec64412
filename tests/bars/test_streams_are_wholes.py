"""Streamed and whole, the same requests: the same bytes, and as many tokens as are paid for."""

import json
import random
from collections.abc import Callable, Iterator

import pytest
from server_process import Node
from wholes import faults, some

pytestmark = pytest.mark.bars

ASKED, AT_A_TIME = 1_000, 100
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


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = Node(tmp_path_factory.mktemp("wholes"), MODELS)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.mark.parametrize("first", range(0, ASKED, AT_A_TIME))
def test_a_stream_is_its_whole_answer_and_usage_counts_its_ids(
    node: Node, first: int, bar: Callable[[str], None]
) -> None:
    wrong = []
    for number in range(first, first + AT_A_TIME):
        model = "echo" if number % 4 == 0 else "tiny"
        dice = random.Random(number)
        path, body = some(dice, model, has_forms=model == "tiny", most_tokens=40)
        found = list(faults(node, path, body, number))
        wrong += [(number, each, json.dumps(body)) for each in found]

    bar(f"requests {first} to {first + AT_A_TIME - 1}, whole and streamed: {len(wrong)} differ")
    assert wrong == []


def test_all_that_was_asked_is_in_the_ledger(node: Node, bar: Callable[[str], None]) -> None:
    taken = sum(entry["outcome"] == "answered" for entry in node.entries())
    bar(f"{ASKED} requests, whole and streamed: {taken} answers")
    assert taken > 1.8 * ASKED
    assert node.verified()["ok"]
    assert "Traceback" not in node.log()
