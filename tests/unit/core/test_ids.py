"""Names are never given twice."""

import os
import time

import pytest

from llmhost.core import ids
from llmhost.core.ids import new_id, new_request_id, new_salt, new_seed


def test_a_forked_process_gives_other_names_and_seeds() -> None:
    new_id("warm_")  # draws many at once
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, f"{new_id('x_')} {new_seed()}".encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader) as told:
        name, seed = told.read().split()

    assert name != new_id("x_")
    assert int(seed) != new_seed()


def test_requests_are_named_in_their_order_within_a_second_too() -> None:
    before, name, after = (time.time_ns(), new_request_id(), time.time_ns())
    assert int(name[4:12], 16) == int(name[4:16], 16) // 65_536
    assert before * 65_536 // 10**9 <= int(name[4:16], 16) <= after * 65_536 // 10**9
    assert len(name) == len("req_") + 24
    assert len({new_request_id() for _ in range(1000)}) == 1000


class Emptied(list[str]):
    """Another thread has had the last one after whoever looked."""

    def __bool__(self) -> bool:
        return True


def test_a_salt_is_drawn_where_another_thread_took_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ids, "_drawn", Emptied())
    assert len(new_salt()) == 16
