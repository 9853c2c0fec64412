"""The audit log's file: what is added stays, and what is done to it from outside is found, with its place."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.storage.damage import (
    cut,
    delete,
    fill,
    flip_a_bit,
    open_trail,
    random_row,
    swap,
    tamper,
)

from llmhost.storage.audit import AuditRow, Wanted
from llmhost.storage.audit_chain import Head, Link, check, head_line, mark_of, read_head
from llmhost.storage.connect import StorageFailed

KEY = b"k" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with closing(open_trail(tmp_path)) as trail:
        fill(trail, random.Random(1), 60)
    return tmp_path


def found(folder: Path, kept: Head | None = None) -> tuple[int, str] | None:
    with closing(open_trail(folder)) as trail:
        broken = trail.verify(kept).broken
    return None if broken is None else (broken.seq, broken.reason)


def test_what_was_added_is_there_after_a_reopening_and_whole(folder: Path):
    with closing(open_trail(folder)) as trail:
        fill(trail, random.Random(2), 5)
        rows = [found.row for found in trail.oldest(Wanted())]
        verdict = trail.verify()

    chance = random.Random(1)
    assert rows[:60] == [random_row(chance, 1_000 + number) for number in range(60)]
    assert (verdict.rows, verdict.head.seq, verdict.broken) == (65, 65, None)


@pytest.mark.parametrize("how", [flip_a_bit, delete, swap])
@pytest.mark.parametrize("seq", [1, 31, 59])
@pytest.mark.parametrize("seed", range(3))
def test_a_row_that_was_changed_deleted_or_swapped_is_named(folder, how, seq: int, seed: int):
    tamper(folder, seq, how, seed)

    assert found(folder)[0] == seq


@pytest.mark.parametrize("count", [1, 7, 60])
def test_rows_cut_off_at_the_end_are_missed(folder: Path, count: int):
    cut(folder, count)

    seq, reason = found(folder)
    assert seq == 61 - count  # in their place is the row in which the node says so
    assert "the node found when it wrote it" in reason
    assert "60 were gone" in reason or "60 was gone" in reason


def test_what_was_cut_off_stays_known_when_the_log_has_grown_again(folder: Path):
    cut(folder, 2)
    with closing(open_trail(folder)) as trail:
        fill(trail, random.Random(3), 10)

    assert found(folder)[0] == 59


def test_a_cut_while_the_node_runs_is_noted_with_the_next_row(folder: Path):
    with closing(open_trail(folder)) as trail:
        cut(folder, 3)
        fill(trail, random.Random(3), 1)
        assert trail.verify().broken.seq == 58


def test_a_log_without_the_file_that_says_its_end_is_not_believed(folder: Path):
    (folder / "audit.head").unlink()

    seq, reason = found(folder)
    assert seq == 61
    assert "audit.head" in reason


def test_a_head_that_was_kept_elsewhere_tells_a_log_that_was_rolled_back(tmp_path: Path):
    with closing(open_trail(tmp_path)) as trail:
        fill(trail, random.Random(1), 10)
        kept = trail.verify().head
    for name in ("audit.db", "audit.head"):
        (tmp_path / name).unlink()

    assert found(tmp_path) is None
    assert found(tmp_path, kept) == (1, "rows 1 to 10 were cut off at the end")


def test_a_row_under_another_key_does_not_fit(folder: Path):
    with closing(sqlite3.connect(folder / "audit.db")) as db:
        mark, *values = db.execute(
            "SELECT mark, seq, node_id, at_ns, kind, org, actor, action, target, request_id, detail"
            " FROM rows WHERE seq = 60"
        ).fetchone()
        forged = (61, *values[1:])
        db.execute(
            "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*forged, mark_of(b"guess" * 8, mark, forged)),
        )
        db.commit()

    assert found(folder)[0] == 61


def test_a_damaged_file_is_a_finding_and_no_crash(folder: Path):
    path = folder / "audit.db"
    content = bytearray(path.read_bytes())
    page = (
        content.find(b"/admin/v1/keys") // 4096 * 4096
    )  # of the first rows; their head comes first
    content[page : page + 64] = b"\xff" * 64
    path.write_bytes(content)

    with closing(open_trail(folder)) as trail:
        assert trail.verify().broken is not None


def test_old_rows_are_pruned_by_organisation_and_the_chain_stays_whole(folder: Path):
    with closing(open_trail(folder)) as trail:
        acme = sum(row.row.org == "acme" for row in trail.oldest(Wanted()))
        assert trail.prune({"acme": 10**18}, rest_before_ns=0) in (acme, acme - 1)
        left = [row.row.org for row in trail.oldest(Wanted())]
        verdict = trail.verify()
        assert left.count("acme") <= 1
        assert verdict.broken is None
        assert (verdict.rows, verdict.pruned) == (len(left), 60 - len(left))

        trail.prune({"acme": 10**18}, rest_before_ns=10**18)
        verdict = trail.verify()
        fill(trail, random.Random(4), 3)
        assert (verdict.rows, verdict.pruned, verdict.broken) == (1, 59, None)
        assert trail.verify().broken is None


def test_an_end_that_was_pruned_since_is_no_damage(folder: Path):
    line = (folder / "audit.head").read_bytes()
    with closing(open_trail(folder)) as trail:
        fill(trail, random.Random(3), 5)
        trail.prune({}, rest_before_ns=10**18)
    (folder / "audit.head").write_bytes(line)

    assert found(folder) is None


@pytest.mark.parametrize("change", ["last_seq = last_seq + 1", "seal = mark", "mark = before"])
def test_a_checkpoint_can_not_be_forged(folder: Path, change: str):
    with closing(open_trail(folder)) as trail:
        trail.prune({}, rest_before_ns=1_020)
    with closing(sqlite3.connect(folder / "audit.db")) as db:
        db.execute(f"UPDATE checkpoints SET {change}")
        db.commit()

    assert found(folder)[0] in (1, 21)


def test_a_row_that_was_changed_can_not_be_pruned_away(folder: Path):
    tamper(folder, 5, flip_a_bit, 1)

    with closing(open_trail(folder)) as trail:
        with pytest.raises(StorageFailed, match="row 5 is not what was recorded"):
            trail.prune({}, rest_before_ns=10**18)
        assert trail.verify().broken.seq == 5


def test_rows_are_found_by_what_they_are_of(folder: Path):
    with closing(open_trail(folder)) as trail:
        newest = trail.newest(Wanted(org="acme", kind="admin"), limit=3)
        older = trail.newest(Wanted(org="acme", kind="admin"), limit=100, before=newest[-1].seq)

    assert [row.row.org for row in (*newest, *older)] == ["acme"] * (3 + len(older))
    assert sorted(row.seq for row in (*newest, *older)) == [
        row.seq for row in reversed([*newest, *older])
    ]


async def test_a_change_and_the_row_that_tells_of_it_are_both_there_or_neither(tmp_path: Path):
    row = AuditRow(at_ns=1, kind="policy", actor="operator", action="x", target="acme")
    with closing(open_trail(tmp_path)) as trail:
        with pytest.raises(ZeroDivisionError):
            await trail.together(lambda connection: (1 // 0, row))
        assert list(trail.oldest(Wanted())) == []
        assert await trail.together(lambda connection: (7, row)) == 7
        assert [found.row for found in trail.oldest(Wanted())] == [row]


VALUES = st.lists(st.one_of(st.integers(0, 9), st.text(max_size=3), st.none()), max_size=3)


@given(st.lists(VALUES, min_size=3, max_size=3), VALUES, st.integers(0, 2))
@settings(max_examples=20)
def test_any_change_of_any_chain_is_found_at_its_row(rows: list, other: list, at: int):
    links, before = [], bytes(32)
    for number, values in enumerate(rows, 1):
        before = mark_of(KEY, before, (number, *values))
        links.append(Link((number, *values), before))
    assert check(KEY, links).broken is None
    links[at] = Link((at + 1, *other), links[at].mark)

    broken = check(KEY, links).broken
    assert broken is None if other == rows[at] else broken.seq == at + 1


@given(st.binary(max_size=160))
@settings(max_examples=20)
def test_only_what_a_node_wrote_is_read_as_a_head(line: bytes):
    head = Head(7, bytes(range(32)))

    assert read_head(KEY, head_line(KEY, head)) == head
    assert read_head(b"x" * 32, head_line(KEY, head)) is None
    assert read_head(KEY, line) is None
