"""Weights that wait in host memory, here on the CPU as the device: gone from it, and the same when they come back."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tests.unit.kernels.interpreting  # noqa: F401
import torch
from tests.unit.engines.runner_contract import ask
from tests.unit.engines.toy_scheduler import GREEDY, ToyScheduler

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.errors import OutOfMemory
from llmhost.core.step import Row
from llmhost.engines.torch import load as loading
from llmhost.engines.torch.merged import merge
from llmhost.engines.torch.runner import TorchRunner
from llmhost.engines.torch.sleep import Sleeping

Checkpoint = Callable[[str], Path]


@pytest.fixture
def runner(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> TorchRunner:
    """Its weights are in memory that can be given back; what transformers maps from a file can't."""
    monkeypatch.setattr(loading, "DIRECT_DEVICES", ("cpu",))
    options = TorchOptions(device="cpu")
    return loading.load_runner(checkpoint("llama"), block_tokens=16, options=options)


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 2**20])
def test_tensors_of_all_kinds_come_back_as_they_were(chunk_bytes: int):
    tensors = [
        torch.arange(6.0).view(2, 3),
        torch.arange(5, dtype=torch.int64),
        torch.tensor(3.5, dtype=torch.bfloat16),
        torch.empty(0),
        torch.arange(8.0)[2:4],
    ]
    before = [tensor.clone() for tensor in tensors]

    sleeping = Sleeping(tensors, chunk_bytes=chunk_bytes)
    assert all(tensor.untyped_storage().nbytes() == 0 for tensor in tensors)
    sleeping.wake()

    assert all(tensor.equal(right) for tensor, right in zip(tensors, before, strict=True))
    assert sleeping.size_bytes == 24 + 40 + 2 + 32


def test_views_of_one_storage_are_moved_once_and_stay_views():
    first, second = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 2, bias=False)
    whole, _ = merge([first, second])
    right = whole.clone()

    sleeping = Sleeping([first.weight, second.weight, whole])
    assert sleeping.size_bytes == whole.nbytes
    sleeping.wake()
    with torch.no_grad():
        second.weight.fill_(7.0)

    assert whole[:4].equal(right[:4])
    assert whole[4:].eq(7.0).all()


def test_without_room_all_of_it_sleeps_on_and_can_be_woken_later(
    monkeypatch: pytest.MonkeyPatch,
):
    tensors = [torch.ones(4), torch.full((8,), 2.0)]
    sleeping = Sleeping(tensors)
    with monkeypatch.context() as patch:
        resize = torch.UntypedStorage.resize_

        def fails(storage: torch.UntypedStorage, size: int) -> object:
            if size == 32:
                raise torch.OutOfMemoryError("no room")
            return resize(storage, size)

        patch.setattr(torch.UntypedStorage, "resize_", fails)
        with pytest.raises(OutOfMemory):
            sleeping.wake()

    assert all(tensor.untyped_storage().nbytes() == 0 for tensor in tensors)
    sleeping.wake()
    assert tensors[1].eq(2.0).all()


def test_a_model_that_slept_answers_as_before(runner: TorchRunner):
    right = ToyScheduler(runner).answer(*ask())
    runner.set_kv_blocks(0)

    for _ in range(2):
        runner.sleep()
        assert all(weight.untyped_storage().nbytes() == 0 for weight in runner._model.parameters())
        runner.wake()

    assert ToyScheduler(runner).answer(*ask()) == right


def test_fused_layers_find_their_weights_again(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loading, "DIRECT_DEVICES", ("cpu",))
    monkeypatch.setattr(loading, "has_kernels", lambda device: True)
    monkeypatch.setattr(loading, "launches_of", lambda *_, **__: [])
    monkeypatch.setattr(
        loading, "check_against_eager", lambda *_: None
    )  # takes the interpreter long
    runner = loading.load_runner(
        checkpoint("qwen3"), block_tokens=16, options=TorchOptions(device="cpu")
    )
    assert runner.path is not None and runner.path.decoder is not None
    right = _few_tokens(runner)
    runner.set_kv_blocks(0)

    runner.sleep()
    with torch.no_grad():
        assert runner.path.decoder.embedding.untyped_storage().nbytes() == 0
    runner.wake()

    assert _few_tokens(runner) == right


def _few_tokens(runner: TorchRunner) -> list[object]:
    """Of a prompt, and of each token after it."""
    runner.set_kv_blocks(2)
    tokens, drawn = [5, 9, 200, 17, 4], list[object]()
    for start in (0, 5, 6):
        row = Row(0, tokens[start:], start, [1], GREEDY, 0, True)
        drawn += runner.run([row])
        tokens.append(int(str(drawn[-1])))
    return drawn


def test_a_model_that_sleeps_can_be_closed(runner: TorchRunner):
    runner.sleep()
    runner.close()
    runner.close()


def test_on_the_cpu_a_model_says_that_it_can_not_sleep(runner: TorchRunner):
    assert not runner.facts.can_sleep
