"""The paged cache: blocks go to host memory and come back as they were."""

import pytest
import torch

from llmhost.core.step import KvMove
from llmhost.engines.torch import kv
from llmhost.engines.torch.kv import KvShape, PagedKv

SHAPE = KvShape(layers=2, kv_heads=1, head_dim=4, block_tokens=8, dtype=torch.bfloat16)


@pytest.fixture
def cache() -> PagedKv:
    cache = PagedKv(SHAPE, torch.device("cpu"))
    cache.resize(4)
    cache.resize_host(3)
    for place, (key, value) in enumerate(cache.layers):
        for block in range(4):
            key[block] = 10 * place + block
            value[block] = 100 + 10 * place + block
    return cache


def contents(cache: PagedKv, block: int) -> list[float]:
    return [float(tensor[block].float().mean()) for layer in cache.layers for tensor in layer]


def test_blocks_come_back_as_they_went(cache: PagedKv) -> None:
    before = [contents(cache, block) for block in range(4)]
    cache.move([KvMove(1, 0, is_to_host=True), KvMove(3, 2, is_to_host=True)])
    for key, value in cache.layers:
        key.zero_()
        value.zero_()
    cache.move([KvMove(0, 2, is_to_host=False), KvMove(2, 0, is_to_host=False)])
    assert contents(cache, 0) == before[3]
    assert contents(cache, 2) == before[1]
    assert contents(cache, 1) == [0.0] * 4


def test_moves_are_carried_out_in_their_order(cache: PagedKv) -> None:
    before = [contents(cache, block) for block in range(4)]
    cache.move(
        [
            KvMove(0, 1, is_to_host=True),
            KvMove(1, 1, is_to_host=True),  # the slot's first text was given up at once
            KvMove(0, 1, is_to_host=False),
            KvMove(2, 1, is_to_host=True),
            KvMove(3, 1, is_to_host=False),
        ]
    )
    assert contents(cache, 0) == before[1]
    assert contents(cache, 3) == before[2]


def test_host_memory_in_slabs_is_as_good_as_in_one_piece(
    cache: PagedKv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv, "SLAB_BYTES", 2 * SHAPE.block_bytes + 1)
    monkeypatch.setattr(kv, "MOVED_AT_ONCE", 2)
    cache.resize_host(5)
    before = [contents(cache, block) for block in range(4)]
    cache.move([KvMove(block, 4 - block, is_to_host=True) for block in range(4)])
    cache.move([KvMove(3 - block, 4 - block, is_to_host=False) for block in range(4)])

    assert [contents(cache, block) for block in range(4)] == before[::-1]


def test_one_text_may_come_back_to_two_blocks(cache: PagedKv) -> None:
    before = contents(cache, 1)
    cache.move([KvMove(1, 0, is_to_host=True)])
    cache.move([KvMove(2, 0, is_to_host=False), KvMove(3, 0, is_to_host=False)])
    assert contents(cache, 2) == contents(cache, 3) == before
