"""The audit log while the disk takes rows, and while it does not."""

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.storage.damage import open_trail

from llmhost.config.schema.safety import AuditSettings
from llmhost.core.caller import Caller
from llmhost.core.errors import Overloaded, SafetyUnavailable
from llmhost.safety import audit
from llmhost.safety.audit import AuditJournal, AuditLog
from llmhost.safety.kept_prompts import MOST_BYTES, KeptPrompts
from llmhost.safety.verdict import Action, Decision, Direction, Finding, Screening, Tier
from llmhost.storage.audit import AuditTrail, Wanted
from llmhost.storage.connect import StorageFailed
from llmhost.testing import ManualClock, at

CALLER = Caller(key_id="k1", org="acme", team="red")
FOUND = Finding("pii", "pii.card", Tier.RULES, 0.87654321, 3, 19)


def screening(clock: ManualClock, action: Action, *findings: Finding) -> Screening:
    return Screening(
        at_ns=clock.utc_ns(),
        request_id="req_1",
        caller=CALLER,
        model="tiny@1",
        direction=Direction.INPUT,
        decision=Decision(action, "acme@2", findings[0] if findings else None),
        findings=findings,
    )


@pytest.fixture
def clock() -> ManualClock:
    return at("2026-01-01T12:00:10")


def log_of(trail: AuditTrail, clock: ManualClock) -> AuditLog:
    return AuditLog(trail, AuditSettings(keep_days=10), clock)


def rows(folder: Path) -> list[Any]:
    with closing(open_trail(folder)) as trail:
        return [found.row for found in trail.oldest(Wanted())]


def test_a_screening_is_written_with_what_was_found_and_no_place_in_the_text(tmp_path, clock):
    log = log_of(open_trail(tmp_path), clock)
    AuditJournal(log, each=False).record(screening(clock, Action.BLOCK, FOUND))
    log.close()

    [row] = rows(tmp_path)
    assert (row.kind, row.org, row.actor, row.action) == ("screening", "acme", "k1", "block")
    assert row.detail == {
        "direction": "input",
        "policy": "acme@2",
        "team": "red",
        "rule": "pii.card",
        "findings": [{"category": "pii", "rule": "pii.card", "tier": "rules", "score": 0.8765}],
    }


def test_what_nobody_objected_to_is_counted_by_the_minute(tmp_path, clock):
    log = log_of(open_trail(tmp_path), clock)
    journal = AuditJournal(log, each=False)
    for _ in range(3):
        journal.record(screening(clock, Action.ALLOW))
    clock.advance(60)
    journal.record(screening(clock, Action.ALLOW))
    journal.record(screening(clock, Action.ALLOW, FOUND))
    log.close()

    kinds = [(row.kind, row.detail.get("count")) for row in rows(tmp_path)]
    assert sorted(kinds, key=str) == [("allowed", 1), ("allowed", 3), ("screening", None)]


def test_each_text_that_passes_has_a_row_where_that_is_wanted(tmp_path, clock):
    log = log_of(open_trail(tmp_path), clock)
    AuditJournal(log, each=True).record(screening(clock, Action.ALLOW))
    log.close()

    assert [(row.kind, row.action) for row in rows(tmp_path)] == [("screening", "allow")]


def test_while_the_disk_refuses_screenings_wait_and_are_written_later(tmp_path, clock, monkeypatch):
    log = log_of(open_trail(tmp_path), clock)
    journal = AuditJournal(log, each=False)
    failure = StorageFailed(tmp_path / "audit.db", OSError("no space left"))
    with monkeypatch.context() as full:
        full.setattr(AuditTrail, "health", failure)
        full.setattr(audit, "MOST_WAITING", 2)
        for _ in range(2):
            journal.record(screening(clock, Action.WARN, FOUND))
        log.retry()
        assert log.waiting == 2
        with pytest.raises(SafetyUnavailable):
            journal.record(screening(clock, Action.BLOCK, FOUND))
        journal.record(screening(clock, Action.ALLOW))
        with pytest.raises(StorageFailed):
            log.check_writable()
    log.check_writable()
    log.retry()
    assert log.waiting == 0
    log.close()

    assert [row.action for row in rows(tmp_path)] == ["warn", "warn", "allow"]


async def test_what_was_done_and_could_not_be_written_is_remembered(tmp_path, clock, monkeypatch):
    trail = open_trail(tmp_path)
    log = log_of(trail, clock)

    async def refuse(_: Any) -> None:
        raise StorageFailed(tmp_path / "audit.db", OSError("no space left"))

    with monkeypatch.context() as full:
        full.setattr(AuditTrail, "add_here", lambda _, row: refuse(row))
        await log.record_done(actor="operator", action="create_key", target="/keys", org="acme")
    assert log.waiting == 1
    log.close()

    assert [(row.kind, row.action) for row in rows(tmp_path)] == [("admin", "create_key")]


async def test_old_rows_go_by_their_organisation_and_their_going_is_written_down(tmp_path, clock):
    log = log_of(open_trail(tmp_path), clock)
    for org in ("acme", "zenith"):
        await log.record(actor="operator", action="x", target="y", org=org)
    clock.advance(5 * 86_400)

    assert await log.prune({"acme": 3}) == 1
    assert await log.prune({"acme": 3}) == 0
    assert log.verify().broken is None
    log.close()

    assert [(row.org, row.action) for row in rows(tmp_path)] == [
        ("zenith", "x"),
        (None, "audit.pruned"),
    ]


def test_a_stop_says_how_many_rows_are_lost_where_the_queue_takes_no_more(
    tmp_path, clock, monkeypatch, caplog
):
    log = log_of(open_trail(tmp_path), clock)
    journal = AuditJournal(log, each=False)
    monkeypatch.setattr(AuditTrail, "health", StorageFailed(tmp_path, OSError("full")))
    for _ in range(3):
        journal.record(screening(clock, Action.BLOCK, FOUND))
    add, added = log.trail.add, []

    def add_two(row):
        if len(added) == 2:
            raise Overloaded("full")
        added.append(row)
        return add(row)

    monkeypatch.setattr(log.trail, "add", add_two)
    log.close()

    assert len(rows(tmp_path)) == 2
    assert [r.facts["rows"] for r in caplog.records if r.message == "audit.lost"] == [1]


def test_what_nobody_objected_to_passes_where_each_has_a_row_and_no_more_may_wait(
    tmp_path, clock, monkeypatch
):
    log = log_of(open_trail(tmp_path), clock)
    monkeypatch.setattr(audit, "MOST_WAITING", 0)
    journal = AuditJournal(log, each=True)

    journal.record(screening(clock, Action.ALLOW))
    with pytest.raises(SafetyUnavailable):
        journal.record(screening(clock, Action.ALLOW, FOUND))
    log.close()

    assert [(row.kind, row.detail["count"]) for row in rows(tmp_path)] == [("allowed", 1)]


def keeping(trail: AuditTrail, clock: ManualClock, secret: bytes = b"s" * 32) -> AuditLog:
    return AuditLog(trail, AuditSettings(keep_days=10), clock, KeptPrompts(lambda: secret))


def with_prompt(clock: ManualClock, text: str = "my card is 4111", days: int = 2) -> Screening:
    return replace(screening(clock, Action.WARN, FOUND), prompt=text, prompt_days=days)


def test_a_prompt_that_is_to_be_kept_lies_encrypted_beside_its_row_for_its_days(tmp_path, clock):
    log = keeping(open_trail(tmp_path), clock)
    AuditJournal(log, each=False).record(with_prompt(clock))
    [row] = log.newest(Wanted(), limit=5)
    kept = log.prompt(row)

    assert kept == ("my card is 4111", clock.utc_ns() + 2 * 86_400 * 10**9)
    assert set(row.row.detail["prompt"]) == {"sha256", "ends_at"}
    assert log.verify().broken is None
    clock.advance(2 * 86_400)
    assert log.prompt(row) is None
    asyncio.run(log.prune({}))
    log.close()
    with closing(sqlite3.connect(tmp_path / "audit.db")) as db:
        assert db.execute("SELECT count(*) FROM texts").fetchone() == (0,)
    assert b"4111" not in (tmp_path / "audit.db").read_bytes()


def test_a_prompt_is_read_with_the_nodes_key_alone(tmp_path, clock):
    with closing(keeping(open_trail(tmp_path), clock)) as log:
        AuditJournal(log, each=False).record(with_prompt(clock))
    with closing(keeping(open_trail(tmp_path), clock, b"o" * 32)) as other:
        [row] = other.newest(Wanted(), limit=5)
        assert other.prompt(row) is None


def test_a_long_prompt_is_kept_from_its_beginning(tmp_path, clock):
    with closing(keeping(open_trail(tmp_path), clock)) as log:
        AuditJournal(log, each=False).record(with_prompt(clock, "\u00fc" * MOST_BYTES))
        [row] = log.newest(Wanted(), limit=5)
        assert row.row.detail["prompt"]["is_cut"] is True
        assert log.prompt(row)[0] == "\u00fc" * (MOST_BYTES // 2)


@pytest.mark.parametrize(
    "tamper",
    [
        "UPDATE texts SET sealed = (SELECT sealed FROM texts WHERE seq = 2) WHERE seq = 1",
        "UPDATE texts SET sealed = x'00' WHERE seq = 1",
        "UPDATE texts SET seq = 9 WHERE seq = 1",
    ],
)
def test_a_prompt_that_was_changed_or_put_in_anothers_place_is_named(tmp_path, clock, tamper):
    with closing(keeping(open_trail(tmp_path), clock)) as log:
        for text in ("one", "two"):
            AuditJournal(log, each=False).record(with_prompt(clock, text))
    with closing(sqlite3.connect(tmp_path / "audit.db")) as db:
        db.execute(tamper)
        db.commit()
    with closing(keeping(open_trail(tmp_path), clock)) as log:
        broken = log.verify().broken
        assert broken is not None and broken.seq in (1, 9)
        assert "its prompt is not what was recorded" in str(broken)


def test_with_all_prompts_kept_each_has_a_row(tmp_path, clock):
    log = keeping(open_trail(tmp_path), clock)
    plain = replace(screening(clock, Action.ALLOW), prompt="hello", prompt_days=1)
    AuditJournal(log, each=False).record(plain)
    AuditJournal(log, each=False).record(screening(clock, Action.ALLOW))
    log.close()
    assert sorted(row.kind for row in rows(tmp_path)) == ["allowed", "screening"]


def test_a_prompt_goes_with_its_row(tmp_path, clock):
    log = keeping(open_trail(tmp_path), clock)
    for _ in range(2):
        AuditJournal(log, each=False).record(with_prompt(clock, days=900))
    clock.advance(11 * 86_400)
    asyncio.run(log.prune({}))
    log.close()
    with closing(sqlite3.connect(tmp_path / "audit.db")) as db:
        assert [seq for (seq,) in db.execute("SELECT seq FROM texts")] == [2]


def test_while_the_disk_refuses_counts_go_on_in_as_many_rows_as_there_are_policies(
    tmp_path, clock, monkeypatch
):
    log = log_of(open_trail(tmp_path), clock)
    journal = AuditJournal(log, each=False)
    with monkeypatch.context() as full:
        full.setattr(AuditTrail, "health", StorageFailed(tmp_path / "audit.db", OSError("full")))
        for _ in range(50):
            journal.record(screening(clock, Action.ALLOW))
            clock.advance(60)
        assert log.waiting == 0
    log.retry()
    log.close()
    assert [row.detail["count"] for row in rows(tmp_path)] == [50]


def test_prompts_that_wait_for_the_disk_are_bounded_and_rows_without_them_say_so(
    tmp_path, clock, monkeypatch
):
    log = keeping(open_trail(tmp_path), clock)
    with monkeypatch.context() as full:
        full.setattr(AuditTrail, "health", StorageFailed(tmp_path / "audit.db", OSError("full")))
        full.setattr(audit, "MOST_WAITING_BYTES", 100)
        for _ in range(3):
            AuditJournal(log, each=False).record(with_prompt(clock))
    log.retry()
    told = [row.row.detail["prompt"].get("is_lost", False) for row in log.oldest(Wanted())]
    assert told == [False, False, True]
    assert log.verify().broken is None
    log.close()


def test_prompts_that_the_disk_refuses_again_and_again_are_bounded_all_the_same(
    tmp_path, clock, monkeypatch
):
    log = keeping(open_trail(tmp_path), clock)
    with monkeypatch.context() as flapping:  # it says that it takes rows, and takes none
        flapping.setattr(AuditTrail, "tell", lambda self, row, complain, stored: complain())
        flapping.setattr(audit, "MOST_WAITING_BYTES", 100)
        for _ in range(5):
            AuditJournal(log, each=False).record(with_prompt(clock))
            log.retry()
        kept = [row for row in log._waiting if row.text is not None]
        assert len(kept) == 2
        assert log.waiting == 5
    log.retry()
    log.close()


class Stuck:
    """A disk that takes rows and is never done with them, until it is."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def tell(self, row: Any, complain: Any, stored: Any) -> None:
        self.done.append(stored)


async def test_a_prompt_waits_until_those_before_it_are_on_disk(tmp_path, clock, monkeypatch):
    log, disk = keeping(open_trail(tmp_path), clock), Stuck()
    journal, one = AuditJournal(log, each=False), with_prompt(clock)
    monkeypatch.setattr(audit, "MOST_WAITING_BYTES", 150)
    monkeypatch.setattr(log.trail, "tell", disk.tell)
    for _ in range(2):
        journal.record(one)
    waiting = [asyncio.create_task(journal.make_room(one)) for _ in range(2)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    await asyncio.to_thread(disk.done[0])
    await asyncio.gather(*waiting)
    log.close()


async def test_a_prompt_that_the_disk_has_no_time_for_is_refused(tmp_path, clock, monkeypatch):
    log, disk = keeping(open_trail(tmp_path), clock), Stuck()
    journal, one = AuditJournal(log, each=False), with_prompt(clock)
    monkeypatch.setattr(audit, "MOST_WAITING_BYTES", 100)
    monkeypatch.setattr(audit, "PATIENCE_S", 0.01)
    monkeypatch.setattr(log.trail, "tell", disk.tell)
    journal.record(one)
    with pytest.raises(SafetyUnavailable, match="is the limit"):
        await journal.make_room(one)
    await journal.make_room(screening(clock, Action.WARN, FOUND))  # nothing of it is kept
    log.close()
