"""A device that is full says so in one way, whatever torch calls it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmhost.core.errors import OutOfMemory
from llmhost.core.sampling import Sampling
from llmhost.core.step import Row
from llmhost.engines.torch.memory import memory_errors

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_a_full_device_is_one_error(error: Exception):
    with pytest.raises(OutOfMemory, match="cpu has too little memory"), memory_errors(CPU):
        raise error


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(CPU):
        raise RuntimeError("shapes do not match")


def test_a_step_that_does_not_fit_says_so(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    runner = load("llama")
    runner.set_kv_blocks(4)
    row = Row(0, [1, 2], 0, [0], Sampling(temperature=0.0), 0, True)
    fitting = runner.run([row])

    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "forward", full)
        with pytest.raises(OutOfMemory):
            runner.run([row])
    assert runner.run([row]) == fitting
