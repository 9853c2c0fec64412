import hashlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace
from tests.unit.cost.told import used

import llmhost
from llmhost.core.caller import LOCAL_CALLER, Caller
from llmhost.core.errors import Overloaded
from llmhost.core.events import RequestEnded
from llmhost.core.output import Outcome, Usage
from llmhost.cost import prices, rows
from llmhost.cost.breakdown import Breakdown
from llmhost.cost.chain import GENESIS, row_hash, struct_hash
from llmhost.cost.entries import COLUMNS, Entry, EntryRow
from llmhost.cost.ledger import Ledger, append
from llmhost.cost.tables import SCHEMA
from llmhost.storage.connect import StorageFailed
from llmhost.storage.reader import Reader
from llmhost.storage.rows import AT_ONCE
from llmhost.storage.writer import Writer

DAY_NS = 86_400 * 10**9
NOON_NS = 20_000 * DAY_NS + DAY_NS // 2
RARE = ("reasoning_tokens", "embedding_tokens", "load_ns", "safety_units")
RECORD_FOREVER = Path(__file__).parent / "record_forever.py"


@dataclass
class ManualClock:
    now_ns: int = NOON_NS

    def monotonic_ns(self) -> int:
        return self.now_ns

    def utc_ns(self) -> int:
        return self.now_ns


@dataclass
class Books:
    path: Path
    max_queue: int = 10_000
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        schemas = [SCHEMA, rows.SCHEMA, prices.SCHEMA]
        self.writer = Writer(self.path, migrations=schemas, max_queue=self.max_queue)
        self.reader = Reader(self.path)
        self.ledger = Ledger(self.writer, self.reader, node_id="node-1", clock=self.clock)

    def record(self, *entries: Entry) -> list[Any]:
        futures = [self.ledger.record(entry) for entry in entries]
        return [future.result(10) for future in futures]

    def forge(self, *statements: str) -> None:
        """Change what is recorded, as somebody with access to the file could."""

        def job(connection: Any) -> None:
            for verb in ("UPDATE", "DELETE"):
                connection.execute(f"DROP TRIGGER IF EXISTS entries_no_{verb}")
            for statement in statements:
                connection.execute(statement)

        self.writer.submit(job).result(10)

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    books = Books(tmp_path / "money.db")
    yield books
    books.close()


def entry(number: int = 1, **changes: Any) -> Entry:
    made = Entry(
        request_id=f"req_{number}",
        utc_ns=NOON_NS + number,
        key_id="abc",
        org="acme",
        model="tiny@1",
        outcome="answered",
        fresh_input_tokens=6,
        cached_input_tokens=4,
        output_tokens=20,
        engine_ns=5_000,
        price_version="tiny/1",
        amount_nano=70,
    )
    return replace(made, **changes)


# Recording


def test_entries_are_numbered_without_gaps_and_chained(books: Books) -> None:
    recorded = books.record(*(entry(i) for i in range(1, 101)))
    assert [r.seq for r in recorded] == list(range(1, 101))
    rows = list(books.ledger.export())
    assert rows[0]["prev_hash"] == GENESIS.hex()
    assert all(after["prev_hash"] == before["hash"] for before, after in pairwise(rows))
    assert [row["hash"] for row in rows] == [r.hash.hex() for r in recorded]


def test_a_replay_changes_nothing_and_returns_the_first(books: Books) -> None:
    first, _ = books.record(entry(1), entry(2))
    (again,) = books.record(replace(entry(1), amount_nano=999, output_tokens=1, utc_ns=1))
    assert again == first
    assert [row["request_id"] for row in books.ledger.export()] == ["req_1", "req_2"]
    (third,) = books.record(entry(3))
    assert third.seq == 3


def test_entries_that_are_there_already_hold_up_none_that_come_with_them(books: Books) -> None:
    first, _ = books.record(entry(1, costs=Breakdown(gpu_compute_nano=7)), entry(2))
    again, third, twice, fourth = books.writer.submit(
        lambda connection: append(
            connection,
            [
                entry(1, costs=Breakdown(gpu_compute_nano=9)),
                entry(3, costs=Breakdown(gpu_compute_nano=5)),
                entry(3, amount_nano=999),
                entry(4),
            ],
            node_id="node-1",
        )
    ).result(10)
    assert (again.seq, again.hash) == (first.seq, first.hash)
    assert twice == third
    assert [third.seq, fourth.seq] == [3, 4]
    query = "SELECT request_id, gpu_compute_nano FROM request_costs ORDER BY seq"
    costs = books.reader.read_now(lambda c: c.execute(query).fetchall())
    assert costs == [("req_1", 7), ("req_3", 5)]
    assert used(books.reader)["acme"]["requests"] == 4
    assert books.ledger.audit().is_intact


@pytest.mark.parametrize("count", [1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE])
def test_a_group_of_any_size_is_recorded_once(books: Books, count: int) -> None:
    entries = [entry(i, costs=Breakdown(gpu_compute_nano=i)) for i in range(count)]
    for _ in range(2):
        recorded = books.writer.submit(partial(append, entries=entries, node_id="node-1")).result(
            10
        )
        assert [r.seq for r in recorded] == list(range(1, count + 1))
    assert used(books.reader)["acme"]["requests"] == count
    assert books.ledger.audit().is_intact


def test_another_kind_of_the_same_request_is_another_entry(books: Books) -> None:
    books.record(entry(1), entry(1, kind="correction", amount_nano=-70))
    assert [(r["kind"], r["amount_nano"]) for r in books.ledger.export()] == [
        ("request", 70),
        ("correction", -70),
    ]
    total = used(books.reader)["acme"]
    assert (total["requests"], total["amount_nano"]) == (1, 0)


def test_an_entry_that_can_not_be_is_refused_and_leaves_no_gap(books: Books) -> None:
    futures = [
        books.ledger.record(entry(1)),
        books.ledger.record(entry(2, fresh_input_tokens=-1)),
        books.ledger.record(entry(3)),
    ]
    assert futures[1].exception(10) is not None
    assert [futures[0].result(10).seq, futures[2].result(10).seq] == [1, 2]
    assert books.ledger.verify().is_intact


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET amount_nano = 0",
        "DELETE FROM entries",
        "INSERT OR REPLACE INTO entries SELECT * FROM entries",
    ],
)
async def test_entries_are_never_changed(books: Books, statement: str) -> None:
    books.record(entry(1))
    refused = books.writer.submit(lambda c: c.execute(statement)).exception(10)
    assert "only ever added" in str(refused)
    assert books.ledger.verify().rows == 1


def test_what_a_request_used_is_taken_from_its_event() -> None:
    event = RequestEnded(
        request_id="req_9",
        client_request_id="theirs",
        utc_ns=NOON_NS,
        kind="chat",
        model="tiny@1",
        caller=Caller(key_id="abc", org="acme", team="search"),
        outcome=Outcome.CANCELLED,
        status=499,
        code="client_closed",
        finish_reason="cancelled",
        usage=Usage(10, 4, 20, 5_000),
        amount_nano=70,
        queue_ms=0.0,
        ttft_ms=None,
        total_ms=1.0,
        stream=True,
    )
    assert Entry.of(event, price_version="tiny/1") == entry(
        1,
        request_id="req_9",
        utc_ns=NOON_NS,
        team="search",
        outcome="cancelled",
        code="client_closed",
    )
    local = Entry.of(replace(event, caller=LOCAL_CALLER), price_version=None)
    assert (local.org, local.key_id, local.price_version) == ("local", None, None)
    with pytest.raises(AssertionError):
        Entry.of(replace(event, caller=None), price_version=None)


def test_a_made_up_model_name_can_always_be_recorded(books: Books) -> None:
    event = RequestEnded(
        request_id="req_9",
        client_request_id=None,
        utc_ns=NOON_NS,
        kind="chat",
        model="\ud800" + "x" * 100_000,
        caller=LOCAL_CALLER,
        outcome=Outcome.REFUSED,
        status=404,
        code="model_not_found",
        finish_reason=None,
        usage=Usage(),
        amount_nano=0,
        queue_ms=0.0,
        ttft_ms=None,
        total_ms=1.0,
        stream=False,
    )
    (recorded,) = books.record(Entry.of(event, price_version=None))
    assert recorded.entry.model == "?" + "x" * 199


def test_a_full_queue_refuses_the_entry_before_it_is_taken(tmp_path: Path) -> None:
    books = Books(tmp_path / "small.db", max_queue=3)

    def flood(_: Any) -> int:  # on the writer's thread, so that nothing is taken meanwhile
        for number in range(1, 10):
            try:
                books.ledger.record(entry(number))
            except Overloaded:
                return number - 1
        return 9

    assert books.writer.submit(flood).result(10) == 3
    books.close()
    with Reader(books.path) as reader:
        assert reader.read_now(lambda c: c.execute("SELECT count(*) FROM entries").fetchone()) == (
            3,
        )


# Checking


def test_an_empty_ledger_is_intact(books: Books) -> None:
    report = books.ledger.verify()
    assert (report.is_intact, report.rows, report.head) == (True, 0, GENESIS.hex())


def test_an_untouched_ledger_is_intact_over_many_pages(books: Books) -> None:
    recorded = books.record(*(entry(i) for i in range(1, 2_502)))
    report = books.ledger.verify()
    assert (report.is_intact, report.rows) == (True, 2_501)
    assert report.head == recorded[-1].hash.hex()


@pytest.mark.parametrize(
    ("statements", "seq", "reason"),
    [
        (["UPDATE entries SET amount_nano = 1 WHERE seq = 7"], 7, "not what was recorded"),
        (["UPDATE entries SET org = 'beta' WHERE seq = 1"], 1, "not what was recorded"),
        (["UPDATE entries SET code = 'x' WHERE seq = 20"], 20, "not what was recorded"),
        (["UPDATE entries SET team = 't' WHERE seq = 7"], 7, "not what was recorded"),
        (["UPDATE entries SET hash = zeroblob(32) WHERE seq = 7"], 7, "not what was recorded"),
        (["UPDATE entries SET prev_hash = zeroblob(32) WHERE seq = 7"], 7, "does not follow"),
        (["DELETE FROM entries WHERE seq = 7"], 8, "number 7 should be here"),
        (["DELETE FROM entries WHERE seq = 1"], 2, "number 1 should be here"),
        (
            [
                "DELETE FROM entries WHERE seq = 7",
                "UPDATE entries SET seq = seq - 1 WHERE seq > 7",
            ],
            7,
            "does not follow",
        ),
    ],
)
def test_the_first_row_that_was_tampered_with_is_named(
    books: Books, statements: list[str], seq: int, reason: str
) -> None:
    books.record(*(entry(i) for i in range(1, 21)))
    books.forge(*statements)
    report = books.ledger.verify()
    assert not report.is_intact
    assert report.broken is not None
    assert report.broken.seq == seq
    assert reason in report.broken.reason
    assert report.broken.request_id.startswith("req_")


def test_a_forger_who_mends_a_row_breaks_the_next(books: Books) -> None:
    books.record(*(entry(i) for i in range(1, 11)))
    rows = list(books.ledger.export())
    changed = {"seq": 5, "node_id": "node-1"} | {
        name: getattr(entry(5), name) for name in Entry.__struct_fields__
    }
    changed |= {name: value or None for name, value in changed.items() if name in RARE}
    changed |= {"debit": "org:acme", "credit": "revenue"}
    mended = row_hash(bytes.fromhex(rows[3]["hash"]), changed | {"amount_nano": 1})
    books.forge(f"UPDATE entries SET amount_nano = 1, hash = x'{mended.hex()}' WHERE seq = 5")
    report = books.ledger.verify()
    assert report.broken is not None
    assert (report.rows, report.broken.seq) == (5, 6)


def test_a_cut_tail_shows_only_by_its_head(books: Books) -> None:
    recorded = books.record(*(entry(i) for i in range(1, 11)))
    books.forge("DELETE FROM entries WHERE seq > 8")
    report = books.ledger.verify()
    assert report.is_intact
    assert report.head == recorded[7].hash.hex() != recorded[9].hash.hex()


values = st.none() | st.integers(-(2**63), 2**63 - 1) | st.text()


@given(st.dictionaries(st.text(), values), st.dictionaries(st.text(), values))
def test_rows_that_differ_have_different_hashes(one: dict, other: dict) -> None:
    def said(row: dict) -> dict:
        return {name: value for name, value in row.items() if value is not None}

    is_same = row_hash(GENESIS, one) == row_hash(GENESIS, other)
    assert is_same == (said(one) == said(other))


@given(st.dictionaries(st.sampled_from(COLUMNS), values))
@example({"model": "".join(map(chr, range(0x300))) + "\ud800"})
def test_a_row_has_the_same_hash_however_it_is_made(row: dict) -> None:
    """A struct takes no notice of its types, which texts and numbers in any place try out."""
    made = EntryRow(**row)
    assert struct_hash(GENESIS, made) == row_hash(GENESIS, asdict(made))
    assert struct_hash(GENESIS, made) == row_hash(GENESIS, row)


def test_a_row_is_kept_in_the_order_in_which_it_is_hashed() -> None:
    assert list(EntryRow.__struct_fields__) == sorted(COLUMNS)


def test_the_hash_of_a_row_is_the_one_that_older_versions_gave_it(books: Books) -> None:
    costs = Breakdown(gpu_compute_nano=9, load_id="load_1", salt="x")
    made = entry(1, utc_ns=NOON_NS, model='"tin\u00e9"\x7f@1', run_id="r", costs=costs)
    (recorded,) = books.record(made)
    assert recorded.hash.hex() == "b6158061b1c60318dab5456a57cf5ff81fe6ba8d44ab98359340f7bcd5191290"


def test_a_column_added_later_leaves_old_hashes_as_they_were() -> None:
    assert row_hash(GENESIS, {"seq": 1}) == row_hash(GENESIS, {"seq": 1, "gpu_ns": None})


# Reading


def test_an_export_says_everything_of_an_entry(books: Books) -> None:
    (recorded,) = books.record(entry(1, team="search", code=None))
    (row,) = books.ledger.export()
    assert row == {
        "seq": 1,
        "node_id": "node-1",
        "utc_ns": NOON_NS + 1,
        "kind": "request",
        "request_id": "req_1",
        "key_id": "abc",
        "org": "acme",
        "team": "search",
        "model": "tiny@1",
        "outcome": "answered",
        "code": None,
        "tokens": {"fresh_input": 6, "cached_input": 4, "output": 20},
        "engine_ns": 5_000,
        "price_version": "tiny/1",
        "amount_nano": 70,
        "run_id": None,
        "adapter": None,
        "load_ns": None,
        "safety_units": None,
        "debit": "org:acme",
        "credit": "revenue",
        "cost_digest": None,
        "from_cache": None,
        "task": None,
        "prev_hash": GENESIS.hex(),
        "hash": recorded.hash.hex(),
    }


def test_what_few_requests_have_is_said_of_those_that_have_it(books: Books) -> None:
    costs = Breakdown(gpu_compute_nano=9, load_id="load_1", salt="x")
    books.record(
        entry(1, run_id="r1", adapter="law", reasoning_tokens=5, embedding_tokens=7),
        entry(2, load_ns=3, safety_units=2, costs=costs),
    )
    first, second = books.ledger.export()
    assert (first["run_id"], first["adapter"]) == ("r1", "law")
    assert (first["tokens"]["reasoning"], first["tokens"]["embedding"]) == (5, 7)
    assert (second["load_ns"], second["safety_units"]) == (3, 2)
    assert second["cost_digest"] == hashlib.sha256(b"x/9/0/0/0/0/load_1").hexdigest()[:32]
    assert books.record(entry(2)) == books.record(entry(2, load_ns=3, costs=costs))


def test_what_a_request_cost_can_not_be_guessed_from_its_entry(books: Books) -> None:
    books.record(*(entry(i, costs=Breakdown(gpu_compute_nano=9)) for i in (1, 2)))
    assert len({row["cost_digest"] for row in books.ledger.export()}) == 2


def test_an_export_may_be_left_half_read(books: Books) -> None:
    books.record(*(entry(i) for i in range(1, 1_500)))
    rows = books.ledger.export()
    assert next(rows)["seq"] == 1
    del rows
    books.record(entry(1_500))


# Faults


def test_a_full_disk_is_an_error_to_the_caller_and_no_row_is_lost_or_doubled(books: Books) -> None:
    books.record(*(entry(i) for i in range(1, 51)))
    pages = books.writer.submit(lambda c: c.execute("PRAGMA page_count").fetchone()[0]).result(10)
    limit = f"PRAGMA max_page_count = {pages}"
    books.writer.submit(lambda c: c.execute(limit).fetchall()).result(10)
    futures = [books.ledger.record(entry(i)) for i in range(51, 400)]
    failures = [future.exception(10) for future in futures]
    refused = [number for number, error in enumerate(failures, start=51) if error is not None]
    assert refused
    assert all(isinstance(error, StorageFailed) for error in failures if error is not None)
    books.writer.submit(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchall()).result(
        10
    )
    books.record(*(entry(number) for number in refused))
    report = books.ledger.verify()
    assert (report.is_intact, report.rows) == (True, 399)
    assert Counter(row["request_id"] for row in books.ledger.export()) == {
        f"req_{i}": 1 for i in range(1, 400)
    }


@pytest.mark.parametrize("lines", [1, 700, 2_500])
def test_a_killed_process_loses_and_doubles_nothing_that_it_answered(
    tmp_path: Path, lines: int
) -> None:
    path = tmp_path / "money.db"
    printed: list[str] = []
    for prefix in ("first", "second"):  # the second life goes on where the first was cut
        printed += killed_after(lines, path, prefix)
    books = Books(path)
    found = Counter(row["request_id"] for row in books.ledger.export())
    report = books.ledger.verify()
    books.close()
    assert report.is_intact, report.broken
    assert len(printed) >= 2 * lines
    assert {request_id: found[request_id] for request_id in printed} == dict.fromkeys(printed, 1)
    assert max(found.values()) == 1


def killed_after(lines: int, path: Path, prefix: str) -> list[str]:
    """The ids that a recording process printed before, and while, it was killed."""
    with subprocess.Popen(
        [sys.executable, str(RECORD_FOREVER), str(path), prefix],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(llmhost.__file__).parents[1])},
    ) as child:
        assert child.stdout is not None
        printed = [child.stdout.readline() for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        printed += child.stdout.readlines()
    assert child.returncode == -signal.SIGKILL
    return [line.decode().strip() for line in printed if line.endswith(b"\n")]
