"""The rows of true cost: written with the ledger's entry, made good when a load ends, and never changed."""

import asyncio
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.cost.told import Told, cost

from llmhost.cost import ledger as money
from llmhost.cost.breakdown import Breakdown
from llmhost.cost.costbook import CostBook
from llmhost.cost.entries import Entry
from llmhost.cost.ledger import Ledger
from llmhost.cost.rows import (
    SCHEMA,
    Load,
    RequestCost,
    cost_row,
    end_load,
    insert_costs,
    insert_load,
)
from llmhost.storage.reader import Reader
from llmhost.storage.schema import migrate
from llmhost.storage.writer import Writer
from llmhost.testing import ManualClock, at

NODE = "node-1"


@dataclass
class Books:
    path: Path
    clock: ManualClock

    def __post_init__(self) -> None:
        self.writer = Writer(self.path, migrations=[money.SCHEMA, SCHEMA])
        self.reader = Reader(self.path)
        facts: dict[str, Any] = {"node_id": NODE, "clock": self.clock}
        self.ledger = Ledger(self.writer, self.reader, **facts)
        self.costs = CostBook(self.writer, self.reader, **facts)

    def record(self, request_id: str, *, org: str = "acme", amount: int = 0, **pools: Any) -> None:
        entry = Entry(
            request_id=request_id,
            utc_ns=self.clock.utc_ns(),
            key_id=f"key-of-{org}",
            org=org,
            model="m@1",
            outcome="answered",
            amount_nano=amount,
            costs=Breakdown(**pools),
        )
        self.ledger.record(entry).result(10)

    def load(self, load_id: str = "load_1", cost: int = 1_000) -> None:
        facts: dict[str, Any] = {"utc_ns": 1, "model": "m@1", "device": "cuda:0", "load_ns": 5}
        load = Load(load_id=load_id, cost_nano=cost, expected_requests=100, **facts)
        asyncio.run(self.costs.add_load(load))

    def sums(self, by: str = "org") -> Told:
        return cost(self.reader, by)

    def close(self) -> None:
        self.writer.close()
        self.reader.close()


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    made = Books(tmp_path / "money.db", at("2026-01-10T12:00Z"))
    yield made
    made.close()


def test_costs_and_charges_are_told_by_tenant_key_and_model(books: Books) -> None:
    books.record("a", amount=1_000, gpu_compute_nano=300, infrastructure_nano=50)
    books.record("b", org="other", amount=10, gpu_compute_nano=40, model_loading_nano=5)

    acme, other = books.sums()["acme"], books.sums()["other"]
    assert (acme["requests"], acme["gpu_compute_nano"], acme["infrastructure_nano"]) == (1, 300, 50)
    assert (other["gpu_compute_nano"], other["model_loading_nano"]) == (40, 5)
    assert (acme["amount_nano"], other["amount_nano"]) == (1_000, 10)
    assert books.sums("model")["m@1"]["gpu_compute_nano"] == 340
    assert books.sums("key")["key-of-acme"]["gpu_compute_nano"] == 300


def test_an_entry_that_is_recorded_twice_has_one_row_of_cost(books: Books) -> None:
    for _ in range(2):
        books.record("a", gpu_compute_nano=300)

    assert books.sums()["acme"]["gpu_compute_nano"] == 300


def test_a_load_is_provisional_until_it_ends_and_then_borne_by_how_many_there_were(
    books: Books,
) -> None:
    books.load(cost=1_000)
    for place in range(3):
        books.record(f"a{place}", model_loading_nano=10, load_id="load_1")
    books.record("b", org="other", model_loading_nano=10, load_id="load_1")
    assert books.sums()["acme"]["provisional_nano"] == 30

    for _ in range(2):
        asyncio.run(books.costs.end_load("load_1"))

    acme, other = books.sums()["acme"], books.sums()["other"]
    assert (acme["model_loading_nano"], other["model_loading_nano"]) == (750, 250)
    assert acme["provisional_nano"] == 0
    assert acme["requests"] == 3, "what makes up the difference is no request"


def test_a_load_that_nobody_used_is_the_operators(books: Books) -> None:
    books.load(cost=1_000)
    asyncio.run(books.costs.end_load("load_1"))

    assert books.sums()["-"]["model_loading_nano"] == 1_000


def test_loads_of_a_process_that_was_killed_end_at_the_next_start(books: Books) -> None:
    books.load("load_1", cost=70)
    books.load("load_2", cost=30)
    asyncio.run(books.costs.end_load("load_1"))

    assert books.costs.end_open_loads() == 1
    assert books.costs.end_open_loads() == 0
    assert books.sums()["-"]["model_loading_nano"] == 100


@pytest.mark.parametrize("table", ["request_costs", "loads", "load_ends"])
def test_rows_are_only_ever_added(books: Books, table: str) -> None:
    books.load()
    books.record("a", model_loading_nano=1, load_id="load_1")
    asyncio.run(books.costs.end_load("load_1"))
    with sqlite3.connect(books.path) as outsider:
        for act in (f"DELETE FROM {table}", f"UPDATE {table} SET utc_ns = 0"):
            with pytest.raises(sqlite3.IntegrityError, match="only ever added"):
                outsider.execute(act)
    outsider.close()


@given(
    st.integers(0, 10**9),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 10**6)), max_size=30),
)
def test_a_load_that_has_ended_is_borne_to_the_nano_dollar(
    cost: int, borne: list[tuple[str, int]]
) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, [money.SCHEMA, SCHEMA])
    facts: dict[str, Any] = {"utc_ns": 1, "model": "m@1", "device": "cuda:0", "load_ns": 5}
    load = Load(load_id="load_1", cost_nano=cost, expected_requests=10, **facts)
    insert_load(connection, load, node_id=NODE)
    rows = [
        RequestCost(
            request_id=f"req_{place}",
            utc_ns=1,
            key_id=None,
            org=org,
            team=None,
            model="m@1",
            costs=Breakdown(model_loading_nano=nano, load_id="load_1"),
        )
        for place, (org, nano) in enumerate(borne)
    ]
    _insert(connection, rows)
    _insert(connection, end_load(connection, "load_1", utc_ns=2, node_id=NODE))

    [(total,)] = connection.execute(
        "SELECT coalesce(sum(model_loading_nano), 0) FROM request_costs"
    )
    assert total == cost
    connection.close()


def _insert(connection: sqlite3.Connection, rows: list[RequestCost]) -> None:
    insert_costs(connection, [cost_row(row, row.costs, NODE) for row in rows])
