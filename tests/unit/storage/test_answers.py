"""Answers under names: found until they are too old or too many, by later processes, too."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmhost.storage.answers import SCHEMA, Answer, Answers
from llmhost.storage.connect import StorageFailed
from llmhost.storage.reader import Reader
from llmhost.storage.writer import Writer
from llmhost.testing import ManualClock, at

DAY_S = 86_400.0
HEADERS = ((b"content-type", b"application/json"), (b"x-odd", b"\xff\x00"))


def answer(body: bytes = b"text", **facts: Any) -> Answer:
    known = {"body_hash": b"h" * 32, "request_id": "req_1", "status": 200, "headers": HEADERS}
    return Answer(body=body, **known | facts)


@pytest.fixture
def clock() -> ManualClock:
    return at("2026-03-01T12:00")


@pytest.fixture
def open_answers(tmp_path: Path, clock: ManualClock) -> Iterator[Callable[..., Answers]]:
    """Opens the file anew each time, as processes do one after the other."""
    opened: list[Writer | Reader] = []

    def make(*, kept_s: float = DAY_S, most_bytes: int = 1000) -> Answers:
        while opened:
            opened.pop().close()
        path = tmp_path / "answers.db"
        opened.append(writer := Writer(path, synchronous="NORMAL", migrations=[SCHEMA]))
        opened.append(reader := Reader(path))
        return Answers(
            writer, reader, node_id="n", clock=clock, kept_s=kept_s, most_bytes=most_bytes
        )

    yield make
    while opened:
        opened.pop().close()


async def test_an_answer_is_found_by_its_name_and_over_a_restart(
    open_answers: Callable[..., Answers],
) -> None:
    answers = open_answers()
    await answers.keep(b"one", answer(b"\x00first"))
    await answers.keep(b"two", answer(b"second", request_id="req_2"))

    assert await answers.find(b"one") == answer(b"\x00first")
    answers = open_answers()
    assert await answers.find(b"two") == answer(b"second", request_id="req_2")
    assert await answers.find(b"three") is None


async def test_a_name_has_its_newest_answer(open_answers: Callable[..., Answers]) -> None:
    answers = open_answers()
    await answers.keep(b"one", answer(b"old"))
    await answers.keep(b"one", answer(b"new"))

    assert await answers.find(b"one") == answer(b"new")


async def test_what_is_too_old_is_not_found_and_forgotten(
    open_answers: Callable[..., Answers], clock: ManualClock
) -> None:
    answers = open_answers()
    await answers.keep(b"old", answer())
    clock.advance(DAY_S / 2)
    await answers.keep(b"new", answer())
    clock.advance(DAY_S / 2)

    assert await answers.find(b"old") is None
    assert await answers.find(b"new") == answer()
    assert await answers.forget() == 1
    assert await answers.forget() == 0
    assert await answers.find(b"new") == answer()


async def test_nothing_is_kept_where_nothing_shall_be(
    open_answers: Callable[..., Answers],
) -> None:
    answers = open_answers(kept_s=0)
    await answers.keep(b"one", answer())

    assert await answers.find(b"one") is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(sizes=st.lists(st.integers(0, 120), max_size=12), most_bytes=st.integers(0, 200))
async def test_the_newest_that_fit_are_kept_and_no_more(
    open_answers: Callable[..., Answers],
    clock: ManualClock,
    sizes: list[int],
    most_bytes: int,
) -> None:
    answers = open_answers(most_bytes=most_bytes)
    clock.advance(2 * DAY_S)
    await answers.forget()
    for i, size in enumerate(sizes):
        await answers.keep(b"%d" % i, answer(b"x" * size))

    kept = [i for i in range(len(sizes)) if await answers.find(b"%d" % i)]

    assert sum(sizes[i] for i in kept) <= most_bytes
    assert kept == list(range(len(sizes) - len(kept), len(sizes)))
    for i in reversed(range(len(sizes) - len(kept))):
        later = sum(sizes[i:])
        assert later > most_bytes


async def test_a_file_that_is_gone_is_an_error_and_no_answer(
    open_answers: Callable[..., Answers], tmp_path: Path
) -> None:
    answers = open_answers()
    (tmp_path / "answers.db").unlink()

    with pytest.raises(StorageFailed):
        await answers.find(b"one")
