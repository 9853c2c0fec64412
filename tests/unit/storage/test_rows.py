import sqlite3
from contextlib import closing

import pytest

from llmhost.storage.rows import insert_rows, select_among


@pytest.mark.parametrize("count", [0, 1, 3, 4, 15, 16, 63, 64, 65, 149, 500])
def test_all_rows_arrive_in_order(count: int) -> None:
    rows = [(i, f"text {i}") for i in range(count)]
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (a, b)")
        insert_rows(connection, "t", ("a", "b"), rows)
        assert connection.execute("SELECT a, b FROM t ORDER BY rowid").fetchall() == rows


def test_few_statements_carry_many_rows() -> None:
    statements: list[str] = []
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (a)")
        connection.set_trace_callback(statements.append)
        insert_rows(connection, "t", ("a",), [(i,) for i in range(1000)])
    assert len(statements) < 20


@pytest.mark.parametrize("nulls", [set(), {0}, {0, 2}, {0, 1, 2, 3}])
def test_nothing_is_said_of_rare_columns_that_are_null_in_all_rows(nulls: set[int]) -> None:
    rows = [tuple(None if at in nulls else f"{i} {at}" for at in range(4)) for i in range(5)]
    mixed = [*rows, ("here", None, None, None), (None, None, "here", None)]
    statements: list[str] = []
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (a, b, c, d)")
        connection.set_trace_callback(statements.append)
        for one in (rows, mixed):
            insert_rows(connection, "t", ("a", "b", "c", "d"), one, rare=("a", "c"))
        connection.set_trace_callback(None)
        assert connection.execute("SELECT * FROM t ORDER BY rowid").fetchall() == rows + mixed
    assert ["(b, d)" in one for one in statements] == [{0, 2} <= nulls, False]


@pytest.mark.parametrize("count", [0, 1, 16, 17, 64, 65, 149])
def test_all_that_are_wanted_are_found_once(count: int) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (a TEXT)")
        connection.executemany("INSERT INTO t VALUES (?)", [(str(i),) for i in range(200)])
        wanted = [str(i) for i in range(0, 2 * count, 2)]
        found = select_among(connection, "SELECT a FROM t", "a", wanted)
        assert sorted(found) == sorted((text,) for text in wanted if int(text) < 200)
