"""How many threads of the CPU compute what."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

SMALL_BYTES = 2**28
"""Weights of a model that one core computes with about as fast as several: where these wait for each other, on a busy
machine, it takes them ten times as long."""


def threads_for(weights_bytes: int, device: torch.device) -> AbstractContextManager[None]:
    """Within it this thread computes with as many others as pays for a model of that size and few tokens."""
    is_small = device.type == "cpu" and weights_bytes < SMALL_BYTES
    return alone() if is_small and torch.get_num_threads() > 1 else nullcontext()


@contextmanager
def alone() -> Iterator[None]:
    """This thread computes without others until the block ends; no other thread is concerned."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    _tell_newcomers(count)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def _tell_newcomers(count: int) -> None:
    """A thread takes over what any thread said last when it first computes, and keeps its own number from then on."""
    teller = threading.Thread(target=torch.set_num_threads, args=(count,))
    teller.start()
    teller.join()
