"""Who computes alone, and that nobody else does so because of it."""

import threading
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from llmhost.engines.torch.threads import SMALL_BYTES, Crew, alone, threads_for

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


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew(3)
    yield crew
    crew.close()


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_a_crew_does_each_job_once_and_alone(crew: Crew, count: int):
    done: list[tuple[int, int]] = []

    def job(number: int) -> None:
        done.append((number, torch.get_num_threads()))

    crew.run([partial(job, number) for number in range(count)])

    assert sorted(done) == [(number, 1) for number in range(count)]
    assert torch.get_num_threads() == 2
    assert threads_of_another() == 2


def test_a_job_that_fails_is_told_once_all_are_done(crew: Crew):
    done: list[int] = []

    def fail() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        crew.run([fail, *[partial(done.append, number) for number in range(9)]])
    assert len(done) == 9

    crew.run([partial(done.append, 9)])
    assert len(done) == 10


def test_a_closed_crew_has_no_threads():
    crew = Crew(2)
    threads = crew._threads
    crew.close()
    assert not any(thread.is_alive() for thread in threads)
