"""A stream is its whole answer, in pieces: some of the requests of `tests/bars/test_streams_are_wholes.py`."""

import random

from server_process import Node
from wholes import faults, some


def test_a_stream_adds_up_to_its_whole_answer(tiny_node: Node, open_node: Node) -> None:
    for number in range(30):
        dice, is_tiny = random.Random(number), number % 3 < 2
        model = "tiny" if is_tiny else "echo"
        path, body = some(dice, model, has_forms=is_tiny, most_tokens=12)
        node = tiny_node if is_tiny else open_node

        assert list(faults(node, path, body, number)) == [], body
