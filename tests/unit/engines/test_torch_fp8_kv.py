"""A KV cache in float8: it keeps what a runner must keep, in half of the bytes."""

from collections.abc import Callable

import pytest
import torch
from tests.unit.engines.parity import prompts
from tests.unit.engines.toy_scheduler import Asked, ToyScheduler

from llmhost.core.step import KvMove
from llmhost.engines.torch.kv import KeyValue, KvShape, PagedKv, as_kept
from llmhost.engines.torch.runner import TorchRunner

SHAPE = KvShape(layers=2, kv_heads=1, head_dim=4, block_tokens=8, dtype=torch.float8_e4m3fn)
Load = Callable[..., TorchRunner]


@pytest.fixture
def cache() -> PagedKv:
    cache = PagedKv(SHAPE, torch.device("cpu"))
    cache.resize(4)
    cache.resize_host(3)
    return cache


def written(cache: PagedKv, numbers: torch.Tensor, slot: int = 8) -> torch.Tensor:
    """What is in the cache's first layer after `numbers` [T, head_dim] were written as keys."""
    fresh = KeyValue(numbers[None, None], numbers[None, None])
    slots = torch.arange(slot, slot + len(numbers))
    cache.write(0, fresh, slots, torch.tensor([1]))
    assert torch.equal(as_kept(fresh, SHAPE.dtype).key[0, 0], _read(cache, slots))
    return _read(cache, slots)


def _read(cache: PagedKv, slots: torch.Tensor) -> torch.Tensor:
    return cache.layers[0].key.float().view(-1, SHAPE.head_dim)[slots]


def test_a_block_takes_a_byte_for_each_number():
    assert SHAPE.block_bytes == 2 * 2 * 8 * 4


def test_what_is_read_is_what_was_written_rounded(cache: PagedKv):
    numbers = torch.linspace(-9, 9, 12).view(3, 4)
    assert (written(cache, numbers) - numbers).abs().le(numbers.abs() / 16).all()


def test_what_is_too_large_becomes_the_largest_number(cache: PagedKv):
    numbers = torch.tensor([[1e4, -1e4, 449.0, float("inf")]])
    assert written(cache, numbers).tolist() == [[448.0, -448.0, 448.0, 448.0]]


def test_a_block_that_is_entered_is_wiped(cache: PagedKv):
    cache.layers[0].key.view(torch.uint8).fill_(0x7F)  # NaN
    written(cache, torch.ones(2, 4))
    assert _read(cache, torch.arange(10, 16)).eq(0).all()


def test_blocks_keep_their_numbers_on_their_way_to_the_host_and_back(cache: PagedKv):
    before = written(cache, torch.linspace(-9, 9, 12).view(3, 4))
    cache.move([KvMove(1, 2, is_to_host=True)])
    cache.resize(6)
    cache.move([KvMove(4, 2, is_to_host=False)])
    assert torch.equal(_read(cache, torch.arange(8, 11)), before)
    assert torch.equal(_read(cache, torch.arange(32, 35)), before)


@pytest.mark.parametrize("chunk", [3, 16])
def test_answers_do_not_depend_on_how_prompts_are_cut(chunk: int, load: Load):
    asked = [Asked(prompt, 12, joins_at=2 * i) for i, prompt in enumerate(prompts()[:5])]
    whole = ToyScheduler(load(kv_dtype="fp8"), chunk=512).answer(*asked)
    assert ToyScheduler(load(kv_dtype="fp8"), chunk=chunk).answer(*asked) == whole


def test_a_runner_says_that_its_blocks_are_small(load: Load):
    plain, narrow = load(), load(kv_dtype="fp8")
    assert narrow.facts.kv_block_bytes * 4 == plain.facts.kv_block_bytes
