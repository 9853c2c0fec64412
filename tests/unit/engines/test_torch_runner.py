import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.unit.engines.checkpoints import VOCAB
from tests.unit.engines.runner_contract import HOT, PROMPTS, RunnerContract, ask
from tests.unit.engines.toy_scheduler import GREEDY, Asked, ToyScheduler

from llmhost.core.errors import EngineFailed
from llmhost.core.ports import Runner
from llmhost.core.step import Row
from llmhost.engines.torch.runner import TorchRunner

Load = Callable[..., TorchRunner]


class TestContract(RunnerContract):
    """Of one family; that others give the same tokens however they are batched is in test_torch_exactness."""

    @pytest.fixture
    def runner(self, load: Load) -> Runner:
        return load("llama", block_tokens=8)


def test_facts_count_what_is_really_there(load: Load) -> None:
    runner = load("llama", block_tokens=8)
    assert runner.facts.kv_block_bytes == 2 * 3 * 2 * 16 * 8 * 4
    assert runner.facts.vocab_size == VOCAB
    assert runner.facts.max_sequence_length == 512
    runner.set_kv_blocks(10)
    assert runner._kv is not None
    held = sum(key.nbytes + value.nbytes for key, value in runner._kv.layers)
    assert held == 10 * runner.facts.kv_block_bytes


@pytest.mark.parametrize("count", [96, 200], ids=["same", "grown"])
def test_answers_survive_a_resize_between_steps(load: Load, count: int) -> None:
    runner = load()
    whole = ToyScheduler(runner).answer(*ask())
    scheduler, asked = ToyScheduler(runner), ask()
    for _ in range(4):
        scheduler.step(asked)
        runner.set_kv_blocks(count)
    assert scheduler.answer(*asked) == whole


def test_answers_in_low_blocks_survive_a_shrink(load: Load) -> None:
    runner = load()
    whole = ToyScheduler(runner).answer(*ask())
    scheduler, asked = ToyScheduler(runner), ask()
    scheduler.free = list(range(12))
    scheduler.step(asked)
    runner.set_kv_blocks(12)
    assert scheduler.answer(*asked) == whole


def test_a_sequence_recomputed_after_others_used_its_blocks_says_the_same(load: Load) -> None:
    runner = load(block_tokens=8)
    whole = ToyScheduler(runner).answer(*ask(new_tokens=12))
    scheduler, asked = ToyScheduler(runner, chunk=7), ask(new_tokens=12)
    for _ in range(8):
        scheduler.step(asked)
    for one in asked:
        scheduler.release(one)
    scheduler.answer(Asked(range(100, 200), 40), Asked(range(50), 60))
    assert scheduler.answer(*asked) == whole


def test_what_an_earlier_owner_left_in_a_block_reaches_nobody(load: Load) -> None:
    runner = load(block_tokens=8)
    whole = ToyScheduler(runner).answer(*ask())
    scheduler = ToyScheduler(runner, chunk=5)
    assert runner._kv is not None
    for key, value in runner._kv.layers:
        key.fill_(float("nan"))
        value.fill_(float("inf"))
    assert scheduler.answer(*ask()) == whole


def test_two_rows_may_share_the_blocks_of_a_common_prefix(load: Load) -> None:
    runner = load(block_tokens=8)
    prefix, tails = list(range(16)), ([40, 41], [90])
    runner.set_kv_blocks(8)
    alone = [
        runner.run([Row(0, [*prefix, *tail], 0, [1, 2, 3], GREEDY, 0, True)])[0] for tail in tails
    ]
    runner.run([Row(0, prefix, 0, [6, 4], GREEDY, 0, False)])
    rows = [Row(i, tail, 16, [6, 4, 1 + i], GREEDY, 0, True) for i, tail in enumerate(tails)]
    assert runner.run(rows) == alone


def test_closing_gives_memory_back(load: Load) -> None:
    runner = load()
    runner.set_kv_blocks(8)
    assert runner._kv is not None
    weights = weakref.ref(runner._model.get_input_embeddings().weight)
    cache = weakref.ref(runner._kv.layers[0].key)
    runner.close()
    gc.collect()
    assert weights() is None
    assert cache() is None


def test_a_closed_runner_says_that_it_is_closed(load: Load) -> None:
    runner = load()
    runner.close()
    with pytest.raises(EngineFailed, match="unloaded"):
        runner.run([Row(0, [1], 0, [0], GREEDY, 0, True)])


@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "sampled"])
def test_logits_that_are_no_numbers_fail_their_row_by_name(load: Load, sampling: Any) -> None:
    runner = load()
    runner.set_kv_blocks(4)
    with torch.no_grad():
        runner._model.base_model.norm.weight[17] = float("nan")

    (drawn,) = runner.run([Row(33, [1, 2], 0, [0], sampling, 0, True)])

    assert isinstance(drawn, EngineFailed) and "sequence 33" in drawn.message


def test_no_output_layer_runs_when_no_row_wants_a_token(load: Load) -> None:
    runner = load()
    runner.set_kv_blocks(4)
    calls: list[int] = []
    output = runner._model.get_output_embeddings()
    output.register_forward_hook(lambda *_: calls.append(1))
    runner.run([Row(0, PROMPTS[1], 0, [0], GREEDY, 0, False)])
    assert calls == []
    runner.run([Row(0, [9], 5, [0], GREEDY, 0, True)])
    assert calls == [1]


def test_two_runners_in_two_threads_do_not_meet(load: Load) -> None:
    runners = [load("llama", block_tokens=8), load("qwen3", block_tokens=16)]
    alone = [ToyScheduler(runner).answer(*ask(new_tokens=16)) for runner in runners]
    together: list[Any] = [None, None]
    start = threading.Barrier(2)

    def drive(place: int) -> None:
        start.wait()
        for _ in range(3):
            together[place] = ToyScheduler(runners[place]).answer(*ask(new_tokens=16))

    threads = [threading.Thread(target=drive, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
