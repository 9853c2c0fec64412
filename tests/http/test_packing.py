"""A server that ends while the weights of a 16-bit model are being packed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from server_process import Node
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from llmhost.engines.torch.cpu_linear import lacks_arithmetic
from llmhost.engines.torch.packed import can_pack
from llmhost.engines.torch.random_model import RandomShape, write_random

# Packing takes about a second of one thread, and an answer much less.
SHAPE = RandomShape(layers=4, hidden=512, ffn=1536, heads=8, kv_heads=4, vocab=64)

SETTINGS = """
[models.wide]
source = "{folder}"
[models.wide.options]
device = "cpu"
dtype = "bfloat16"
threads = 1
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    folder = tmp_path / "wide"
    folder.mkdir()
    write_random(folder, SHAPE)
    words = {f"w{i}": i for i in range(SHAPE.vocab)}
    Tokenizer(WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    node = Node(tmp_path, SETTINGS.format(folder=folder))
    try:
        yield node
    finally:
        node.close()


@pytest.mark.skipif(
    not (can_pack() and lacks_arithmetic(torch.bfloat16)), reason="nothing is packed on this CPU"
)
def test_a_server_that_is_told_to_end_while_weights_are_packed_ends_well(node: Node) -> None:
    node.start()
    answer = node.post("/v1/completions", {"model": "wide", "prompt": [1, 2], "max_tokens": 2})
    assert answer.status_code == 200, answer.text

    assert node.stop() == 0
    assert "terminate called" not in node.log()
    assert "Traceback" not in node.log()
