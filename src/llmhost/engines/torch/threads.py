"""How many threads of the CPU compute what."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from queue import SimpleQueue

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


class Crew:
    """Threads that compute alone each, and take jobs from one list as they can.

    Where a step is many short computations, several threads within each wait for each other at every one of them; on a
    machine that others use too, the slowest of them waits for its turn every time. Here nobody waits but for the last.
    """

    def __init__(self, count: int) -> None:
        usual = torch.get_num_threads()
        self._turns: SimpleQueue[_Turn | None] = SimpleQueue()
        ready: SimpleQueue[None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, args=(ready,), name="crew", daemon=True)
            for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            ready.get()
        _tell_newcomers(usual)

    def run(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Returns when all are done; raises what the first that failed did. One caller at a time."""
        if not jobs:
            return
        turn = _Turn(jobs)
        for _ in range(min(len(self._threads), len(jobs))):
            self._turns.put(turn)
        turn.over.get()
        if turn.errors:
            raise turn.errors[0]

    def close(self) -> None:
        for _ in self._threads:
            self._turns.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _work(self, ready: "SimpleQueue[None]") -> None:
        torch.get_num_threads()  # takes over what others said, which would come after ours otherwise
        torch.set_num_threads(1)
        ready.put(None)
        with torch.inference_mode():
            while (turn := self._turns.get()) is not None:
                turn.take_part()


class _Turn:
    """The jobs of one run."""

    def __init__(self, jobs: Sequence[Callable[[], None]]) -> None:
        self.errors: list[Exception] = []
        self.over: SimpleQueue[None] = SimpleQueue()
        """Has something once all jobs are done; twice, where the last two ended together."""
        self._count = len(jobs)
        self._left = deque(jobs)
        self._done: list[None] = []

    def take_part(self) -> None:
        with suppress(IndexError):  # nothing is left
            while True:
                job = self._left.popleft()
                try:
                    job()
                except Exception as error:  # noqa: BLE001 - handed to who asked
                    self.errors.append(error)
                self._done.append(None)
                if len(self._done) == self._count:
                    self.over.put(None)
