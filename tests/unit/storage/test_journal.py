import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.storage.connect import StorageFailed
from llmhost.storage.journal import COUNTERS, NOTE_BYTES, SLOT_BYTES, Journal, Slot

DIES = """
import os, signal, sys
from pathlib import Path
from llmhost.storage.journal import Journal

journal = Journal(Path(sys.argv[1]))
slots = [journal.open(b"request %d" % number) for number in range(3)]
slots[1].close()
for tokens in range(1, 101):
    slots[2].count(1, tokens)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "under_way.journal"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    yield journal
    journal.close()


def reopened(path: Path, journal: Journal) -> dict[bytes, tuple[int, ...]]:
    """What the next process finds."""
    journal.close()
    again = Journal(path)
    found = {note: counts for _, note, counts in again.left_open()}
    again.close()
    return found


def test_what_was_open_is_found_with_its_counts(path: Path, journal: Journal) -> None:
    first, second = journal.open(b"first"), journal.open(b"second")
    first.count(0, 7)
    second.count(1, 2**40)
    assert reopened(path, journal) == {b"first": (7, 0, 0, 0), b"second": (0, 2**40, 0, 0)}


def test_a_killed_process_leaves_its_last_count(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DIES, path], check=False)
    assert done.returncode == -signal.SIGKILL
    journal = Journal(path)
    assert [(note, counts[1]) for _, note, counts in journal.left_open()] == [
        (b"request 0", 0),
        (b"request 2", 100),
    ]
    journal.close()


def test_what_is_closed_is_forgotten(path: Path, journal: Journal) -> None:
    slot = journal.open(b"over")
    slot.close()
    slot.close()
    slot.count(0, 1)
    slot.write(b"too late")
    assert journal.open_slots == 0
    assert reopened(path, journal) == {}


def test_a_slot_is_used_again_with_its_counters_at_nought(path: Path, journal: Journal) -> None:
    slot = journal.open(b"a")
    slot.count(3, 5)
    slot.close()
    journal.open(b"b")
    assert reopened(path, journal) == {b"b": (0,) * COUNTERS}


def test_there_is_always_room_for_one_more(path: Path, journal: Journal) -> None:
    slots = [journal.open(b"%d" % number) for number in range(1000)]
    for number, slot in enumerate(slots):
        slot.count(0, number)
    found = reopened(path, journal)
    assert found == {b"%d" % number: (number, 0, 0, 0) for number in range(1000)}


def test_what_was_left_stays_until_it_is_closed(path: Path, journal: Journal) -> None:
    journal.open(b"left")
    journal.close()
    again = Journal(path)
    [(slot, _, _)] = again.left_open()
    fresh = again.open(b"fresh")
    assert again.open_slots == 2
    slot.close()
    fresh.close()
    assert reopened(path, again) == {}


def test_a_note_can_be_replaced(path: Path, journal: Journal) -> None:
    slot = journal.open(b"runs")
    slot.count(0, 3)
    slot.write(b"has ended, and says more")
    assert reopened(path, journal) == {b"has ended, and says more": (3, 0, 0, 0)}


def test_a_damaged_slot_is_freed(path: Path, journal: Journal) -> None:
    journal.open(b"whole")
    journal.open(b"damaged")
    journal.close()
    content = path.read_bytes()
    path.write_bytes(content.replace(b"damaged", b"Damaged"))
    again = Journal(path)
    assert [note for _, note, _ in again.left_open()] == [b"whole"]
    assert again.open_slots == 1
    again.close()


def test_a_note_that_is_too_long_is_refused_and_takes_no_slot(journal: Journal) -> None:
    journal.open(bytes(NOTE_BYTES)).close()
    with pytest.raises(ValueError, match="4048"):
        journal.open(bytes(NOTE_BYTES + 1))
    assert journal.open_slots == 0


def test_another_file_is_not_taken_for_a_journal(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + bytes(2 * SLOT_BYTES))
    with pytest.raises(StorageFailed, match=path.name):
        Journal(path)


def test_the_file_is_nobody_elses_to_read(path: Path, journal: Journal) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_refuses_more_slots_and_keeps_those_there_are(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = [journal.open(b"x") for _ in range(256)]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageFailed, match="No space left"):
        journal.open(b"one too many")
    slots[0].close()
    journal.open(b"fits").count(0, 9)
    monkeypatch.undo()
    assert reopened(path, journal)[b"fits"][0] == 9


@settings(max_examples=50, deadline=None)
@given(acts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 99))))
def test_the_next_process_finds_exactly_what_was_open(
    acts: list[tuple[int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    journal, slots = Journal(path), dict[int, Slot]()
    expected: dict[bytes, list[int]] = {}
    for who, counter, value in acts:
        note = b"%d" % who
        if who not in slots:
            slots[who], expected[note] = journal.open(note), [0] * COUNTERS
        elif value == 0:
            slots.pop(who).close()
            del expected[note]
        else:
            slots[who].count(counter, value)
            expected[note][counter] = value
    assert reopened(path, journal) == {note: tuple(counts) for note, counts in expected.items()}
