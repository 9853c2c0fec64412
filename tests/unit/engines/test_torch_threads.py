"""Who computes alone, and that nobody else does so because of it."""

import threading
from collections.abc import Iterator

import pytest
import torch

from llmhost.engines.torch.threads import SMALL_BYTES, alone, threads_for

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads_of_another() -> int:
    seen: list[int] = []

    def look() -> None:
        torch.ones(2) @ torch.ones(2)
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return seen[0]


def test_only_the_thread_that_asks_computes_alone():
    with alone():
        assert torch.get_num_threads() == 1
        assert threads_of_another() == 2
    assert torch.get_num_threads() == 2


def test_an_error_ends_it_too():
    with pytest.raises(ValueError, match="wrong"), alone():
        raise ValueError("wrong")
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("size", "device", "count"),
    [(SMALL_BYTES - 1, CPU, 1), (SMALL_BYTES, CPU, 2), (10, torch.device("cuda", 0), 2)],
)
def test_small_models_on_the_cpu_are_computed_alone(size: int, device: torch.device, count: int):
    with threads_for(size, device):
        assert torch.get_num_threads() == count
