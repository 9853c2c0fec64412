"""One answer's bytes for many readers: all of them, in order, from the beginning, whenever each comes and reads."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.api import recording as module
from llmhost.api.recording import Head, Playback, Recording
from llmhost.core.errors import EngineFailed, IdempotencyKeyReused, Overloaded

OK = Head(200, ((b"content-type", b"text/event-stream"),))


class Free:
    """A wire, free or not."""

    def __init__(self) -> None:
        self.is_open = False
        self.got = b""

    def is_free(self) -> bool:
        return self.is_open

    def write(self, body: bytes) -> None:
        self.got += body

    def offer(self, body: bytes) -> bool:
        if self.is_open:
            self.write(body)
        return self.is_open


def recording(
    *, most_bytes: int = 1000, grace_s: float = 0.0, **facts: Any
) -> tuple[Recording, list[str]]:
    """One whose call is known, and what happened to it."""
    told: list[str] = []
    made = Recording(
        most_bytes=most_bytes, grace_s=grace_s, on_abandoned=lambda: told.append("abandoned")
    )
    made.identify(b"hash", "req_1")
    return made, told


async def all_of(playback: Playback) -> bytes:
    got = b""
    while piece := await playback.next():
        got += piece
    return got


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@given(
    pieces=st.lists(st.binary(max_size=9), max_size=12),
    joins=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    most_bytes=st.integers(1, 200),
    last=st.binary(max_size=9),
)
def test_every_reader_gets_every_byte_however_late_it_comes(
    pieces: list[bytes], joins: list[int], most_bytes: int, last: bytes
) -> None:
    async def scene() -> None:
        made, _ = recording(most_bytes=most_bytes)
        made.open(OK)
        reads = []
        for at, piece in enumerate([*pieces, b""]):
            for _ in range(joins.count(at)):
                if not made.is_too_large:
                    reads.append(asyncio.ensure_future(all_of(made.reader())))
            await turns(at % 3)
            made.write(piece)
        made.hold(last)
        kept = made.whole
        made.end()

        whole = b"".join(pieces) + last
        assert await asyncio.gather(*reads) == [whole] * len(reads)
        assert kept == (whole if len(whole) <= most_bytes else None)

    asyncio.run(scene())


async def test_a_large_answer_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 4)
    made, _ = recording()
    made.open(OK)
    playback = made.reader()
    made.write(b"0123456789")
    made.hold(b"")
    made.end()

    assert [await playback.next() for _ in range(3)] == [b"0123", b"4567", b"89"]
    assert playback.is_at_end
    assert await playback.next() == b""


async def test_the_end_is_not_seen_before_it_is_let_out() -> None:
    made, _ = recording()
    made.open(OK)
    made.write(b"a")
    made.hold(b"z")
    playback = made.reader()

    assert await playback.next() == b"a"
    assert not playback.is_at_end
    made.end()
    assert await playback.next() == b"z"
    assert playback.is_at_end


async def test_what_comes_while_a_reader_waits_goes_to_its_wire_and_the_rest_to_the_reader() -> (
    None
):
    made, _ = recording()
    made.open(OK)
    wire = Free()
    playback = made.reader(wire)
    reading = asyncio.ensure_future(all_of(playback))
    await turns()
    wire.is_open = True
    made.write(b"ab")
    made.write(b"cd")
    wire.is_open = False
    made.write(b"ef")
    wire.is_open = True  # the reader was woken, and has not read yet
    made.write(b"gh")
    await turns()
    made.write(b"ij")
    made.hold(b"kl")
    made.end()

    assert await reading == b"efgh"
    assert wire.got == b"abcdijkl"


async def test_a_silence_is_told_and_bytes_on_the_wire_are_no_silence() -> None:
    made, _ = recording()
    made.open(OK)
    wire = Free()
    wire.is_open = True
    playback = made.reader(wire)

    assert await playback.next(0.0) is None
    reading = asyncio.ensure_future(playback.next(30.0))
    await turns()
    made.write(b"a")
    playback._look(playback._waiter, 30.0)  # type: ignore[arg-type]
    assert not reading.done()
    playback._heard_s -= 30.0
    playback._look(playback._waiter, 30.0)  # type: ignore[arg-type]
    assert await reading is None


async def test_nobody_hears_of_another_bodys_answer() -> None:
    made, _ = recording()

    await made.reader().check(b"hash")
    with pytest.raises(IdempotencyKeyReused):
        await made.reader().check(b"other")


async def test_readers_wait_until_it_is_known_whose_answer_it_is() -> None:
    made = Recording(most_bytes=10, grace_s=0, on_abandoned=lambda: None)
    same = asyncio.ensure_future(made.reader().check(b"mine"))
    other = asyncio.ensure_future(made.reader().check(b"theirs"))
    await turns()
    assert not same.done()
    assert not other.done()

    made.identify(b"mine", "req_1")

    await same
    with pytest.raises(IdempotencyKeyReused):
        await other


async def test_what_keeps_a_call_from_running_is_raised_to_all_who_wait_for_it() -> None:
    made = Recording(most_bytes=10, grace_s=0, on_abandoned=lambda: None)
    waiting = [asyncio.ensure_future(made.reader().check(b"mine")) for _ in range(2)]
    await turns()

    made.end(EngineFailed("broken"))

    for each in waiting:
        with pytest.raises(EngineFailed):
            await each


@pytest.mark.parametrize("has_begun", [False, True])
async def test_an_answer_that_breaks_off_is_an_error_after_what_there_was(has_begun: bool) -> None:
    made, _ = recording()
    playback = made.reader()
    if has_begun:
        made.open(OK)
        made.write(b"a")
    made.end()

    if has_begun:
        assert await playback.next() == b"a"
        assert not playback.is_at_end
    with pytest.raises(Overloaded):
        await (playback.next() if has_begun else playback.begun())


async def test_it_is_abandoned_when_nobody_has_read_it_for_a_while() -> None:
    made, told = recording(grace_s=0.0)
    first, second = made.reader(), made.reader()
    first.close()
    first.close()
    await turns()
    assert told == []

    second.close()
    await turns()

    assert told == ["abandoned"]


async def test_whoever_comes_within_the_grace_keeps_it_alive() -> None:
    made, told = recording(grace_s=0.0)
    made.reader().close()
    late = made.reader()
    await turns()
    assert told == []

    late.close()
    made.hold(b"")
    made.end()  # and one that has ended needs no readers
    await turns()

    assert told == []


async def test_what_has_its_end_is_kept_whoever_leaves() -> None:
    made, told = recording(grace_s=0.0)
    made.open(OK)
    first = made.reader()
    first.close()
    made.hold(b"z")
    made.reader().close()
    await turns()

    assert told == []


async def test_beyond_its_bound_those_who_read_go_on_and_what_all_have_is_dropped() -> None:
    made, told = recording(most_bytes=4, grace_s=1000.0)
    made.open(OK)
    quick, slow = made.reader(), made.reader()
    made.write(b"0123")
    assert await quick.next() == b"0123"
    made.write(b"45")

    assert made.is_too_large
    assert await quick.next() == b"45"
    assert bytes(made._body) == b"012345"  # the slow one lacks all of it
    assert await slow.next() == b"012345"
    assert bytes(made._body) == b""
    made.write(b"6")
    slow.close()
    assert await quick.next() == b"6"
    quick.close()

    assert told == ["abandoned"]  # without a grace: nobody could come


async def test_a_read_that_waits_ends_when_its_reader_leaves() -> None:
    made, _ = recording(grace_s=1000.0)
    made.open(OK)
    playback = made.reader()
    reading = asyncio.ensure_future(playback.next())
    await turns()

    playback.close()

    assert await reading == b""
    assert playback.is_closed
