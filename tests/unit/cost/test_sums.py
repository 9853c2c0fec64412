import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from llmhost.cost import prices, rows
from llmhost.cost.entries import Entry
from llmhost.cost.ledger import append
from llmhost.cost.sums import QUARTER_NS, of_entries, quarters_of, spent_by_run, spent_nano
from llmhost.cost.tables import SCHEMA
from llmhost.storage.schema import Schema, migrate

TIMES = st.integers(0, 6 * QUARTER_NS)
ENTRIES = st.builds(
    Entry,
    request_id=st.uuids().map(str),
    kind=st.sampled_from(["request", "request", "correction"]),
    utc_ns=TIMES,
    key_id=st.sampled_from([None, "k1", "k2"]),
    org=st.sampled_from(["acme", "beta"]),
    team=st.sampled_from([None, "red"]),
    model=st.sampled_from(["tiny@1", "big@2"]),
    outcome=st.just("answered"),
    output_tokens=st.integers(0, 9),
    embedding_tokens=st.integers(0, 9),
    amount_nano=st.integers(-50, 100),
    run_id=st.sampled_from([None, None, "run-1", "run-2"]),
    credit=st.sampled_from([None, None, "grants"]),
)


@cache
def empty_ledger() -> bytes:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, [SCHEMA, rows.SCHEMA, prices.SCHEMA])
    return connection.serialize()


@contextmanager
def ledger_of(entries: list[Entry], *, group: int = 7) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.deserialize(empty_ledger())
    for at in range(0, len(entries), group):
        append(connection, entries[at : at + group], node_id="node-1")
    yield connection
    connection.close()


def charged(entries: list[Entry], since: int | None, until: int | None) -> list[Entry]:
    return [
        e
        for e in entries
        if (since is None or since <= e.utc_ns) and (until is None or e.utc_ns < until) and e.is_use
    ]


@given(st.none() | TIMES, st.none() | TIMES)
def test_quarters_and_their_edges_tile_the_time(since: int | None, until: int | None) -> None:
    within = quarters_of(since, until)
    moments = [moment for q in range(-1, 8) for moment in (q * QUARTER_NS, q * QUARTER_NS + 7)]
    moments += [at + d for at in (since, until) if at is not None for d in (-1, 0, 1)]
    for moment in moments:
        places = [within.first <= moment // QUARTER_NS < within.last]
        places += [start <= moment < end for start, end in within.edges]
        is_in = (since is None or since <= moment) and (until is None or moment < until)
        assert sum(places) == is_in, moment


@given(st.lists(ENTRIES, max_size=30), st.none() | TIMES, st.none() | TIMES)
def test_what_somebody_spent_is_the_sum_of_the_entries_of_that_time(
    entries: list[Entry], since: int | None, until: int | None
) -> None:
    mine = charged(entries, since, until)
    with ledger_of(entries) as ledger:
        for level, who, theirs in (
            ("org", "acme", [e for e in mine if e.org == "acme"]),
            ("team", ("acme", "red"), [e for e in mine if (e.org, e.team) == ("acme", "red")]),
            ("team", ("acme", None), [e for e in mine if (e.org, e.team) == ("acme", None)]),
            ("key", "k1", [e for e in mine if e.key_id == "k1"]),
            (
                "run",
                ("beta", None, "k2", "run-1"),
                [
                    e
                    for e in mine
                    if (e.org, e.team, e.key_id, e.run_id) == ("beta", None, "k2", "run-1")
                ],
            ),
        ):
            spent = spent_nano(ledger, level, who, since, until)  # type: ignore[arg-type]
            assert spent == sum(e.amount_nano for e in theirs), (level, who)


@given(st.lists(ENTRIES, max_size=30), st.none() | TIMES, st.none() | TIMES)
def test_what_each_run_spent_is_the_sum_of_its_entries_of_that_time(
    entries: list[Entry], since: int | None, until: int | None
) -> None:
    mine = [e for e in charged(entries, since, until) if e.run_id is not None]
    with ledger_of(entries) as ledger:
        for org, team, key_id in (
            ("acme", None, None),
            ("acme", "red", None),
            ("beta", None, "k2"),
        ):
            spent = spent_by_run(
                ledger, org, team=team, key_id=key_id, since_ns=since, until_ns=until, most=100
            )
            expected: dict[tuple[str | None, str | None, str], int] = {}
            for e in mine:
                if e.org == org and team in (None, e.team) and key_id in (None, e.key_id):
                    run = (e.key_id, e.team, e.run_id or "")
                    expected[run] = expected.get(run, 0) + e.amount_nano
            assert spent == expected


def test_runs_that_were_heard_of_last_are_told_first() -> None:
    entries = [
        entry(number, utc_ns=number * QUARTER_NS, run_id=f"run-{number}") for number in range(5)
    ]
    with ledger_of(entries) as ledger:
        spent = spent_by_run(ledger, "acme", until_ns=3 * QUARTER_NS + 1, most=2)

    assert spent == {("k1", None, "run-3"): 10, ("k1", None, "run-2"): 10}


@given(st.lists(ENTRIES, max_size=30))
def test_sums_are_always_what_the_entries_add_up_to(entries: list[Entry]) -> None:
    with ledger_of(entries, group=4) as ledger:
        for table in ("sums", "run_sums"):
            kept = ledger.execute(f"SELECT * FROM {table}").fetchall()
            assert sorted(kept) == sorted(ledger.execute(of_entries(table)).fetchall())


def entry(number: int, **changes: Any) -> Entry:
    made = Entry(
        request_id=f"req_{number}",
        utc_ns=number,
        key_id="k1",
        org="acme",
        model="tiny@1",
        outcome="answered",
        output_tokens=3,
        amount_nano=10,
    )
    return replace(made, **changes)


def test_a_replayed_entry_is_added_up_once() -> None:
    with ledger_of([entry(1), entry(2), entry(1)], group=2) as ledger:
        append(ledger, [entry(2), entry(2)], node_id="node-1")
        assert spent_nano(ledger, "org", "acme") == 20


def test_a_grant_is_no_use() -> None:
    grant = Entry.transfer(
        "grant_1",
        kind="grant",
        utc_ns=5,
        org="acme",
        debit="grants",
        credit="org:acme",
        amount_nano=1_000,
    )
    with ledger_of([entry(1), grant]) as ledger:
        assert spent_nano(ledger, "org", "acme") == 10
        assert ledger.execute("SELECT requests, amount_nano FROM sums").fetchall() == [(1, 10)]


def test_a_ledger_from_before_there_were_sums_is_added_up_when_it_is_opened() -> None:
    steps = dict(SCHEMA.steps)
    old = Schema(SCHEMA.name, {"entries_and_prices": steps["entries_and_prices"]})
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, [old])
    for number in (1, 2, QUARTER_NS):
        connection.execute(
            "INSERT INTO entries (node_id, utc_ns, kind, request_id, org, model, outcome, fresh_input_tokens,"
            " cached_input_tokens, output_tokens, engine_ns, amount_nano, prev_hash, hash)"
            " VALUES ('n', ?, 'request', ?, 'acme', 'm', 'answered', 1, 2, 3, 4, 50, x'', x'')",
            (number, f"req_{number}"),
        )
    migrate(connection, [SCHEMA])
    assert spent_nano(connection, "org", "acme") == 150
    assert spent_nano(connection, "key", "", 0, QUARTER_NS) == 100
    kept = connection.execute("SELECT * FROM sums ORDER BY quarter").fetchall()
    assert kept == connection.execute(of_entries("sums")).fetchall()
    connection.close()


def test_a_month_is_read_from_the_sums_alone() -> None:
    with ledger_of([entry(1)]) as ledger:
        said: list[str] = []
        ledger.set_trace_callback(said.append)
        spent_nano(ledger, "org", "acme", 0, 2976 * QUARTER_NS)
        ledger.set_trace_callback(None)
    assert len(said) == 1
    assert not any("FROM entries" in statement for statement in said)
