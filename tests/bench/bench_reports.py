"""Reports of a month with a million entries: how long they take, and what another thread waits meanwhile.

python tests/bench/bench_reports.py [ENTRIES]
"""

import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmhost.cost import ledger as money
from llmhost.cost import prices
from llmhost.cost import rows as true_cost
from llmhost.cost.entries import COLUMNS
from llmhost.cost.focus import focus
from llmhost.cost.prices import PriceBook
from llmhost.cost.query import Query
from llmhost.cost.reports import Reports
from llmhost.cost.statement import Statements
from llmhost.cost.sums import of_entries
from llmhost.storage.reader import Reader
from llmhost.storage.writer import Writer
from llmhost.testing import at

START_NS, END_NS = at("2026-11-01T00:00Z").utc_ns(), at("2026-12-01T00:00Z").utc_ns()
MONTH: dict[str, Any] = {"since_ns": START_NS, "until_ns": END_NS}


def entry(number: int, count: int) -> tuple[Any, ...]:
    """Of ten organisations with a hundred keys and four models, evenly over the month."""
    org = f"org{number % 10}"
    facts: dict[str, Any] = dict.fromkeys(COLUMNS)
    facts |= {"seq": number + 1, "node_id": "n", "kind": "request", "outcome": "answered"}
    facts |= {"utc_ns": START_NS + number * ((END_NS - START_NS) // count)}
    facts |= {"request_id": f"req_{number:024d}", "key_id": f"k{number % 100}", "org": org}
    facts |= {"team": f"t{number % 20}", "model": f"m{number % 4}@1", "price_version": "m/1"}
    facts |= {"fresh_input_tokens": 100, "cached_input_tokens": 5, "output_tokens": 50}
    facts |= {"engine_ns": 10**6, "amount_nano": 1_000, "debit": f"org:{org}", "credit": "revenue"}
    return bytes(32), secrets.token_bytes(32), *facts.values()


def fill(path: Path, count: int) -> None:
    schemas = [money.SCHEMA, prices.SCHEMA, true_cost.SCHEMA]
    Writer(path, migrations=schemas, synchronous="NORMAL").close()
    names = ("prev_hash", "hash", *COLUMNS)
    text = f"INSERT INTO entries ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(text, (entry(number, count) for number in range(count)))
        connection.execute(
            "INSERT INTO prices (node_id, utc_ns, version, model, input_nano, cached_input_nano, output_nano,"
            " effective_from_ns) VALUES ('n', 1, 'm/1', 'm', 100, 10, 400, 1)"
        )
        connection.execute(f"INSERT INTO sums {of_entries('sums')}")


@contextmanager
def watched() -> Iterator[list[float]]:
    """The longest that a thread, which wants to run every millisecond, could not."""
    worst, ended = [0.0], threading.Event()

    def run() -> None:
        last = time.perf_counter()
        while not ended.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            worst[0], last = max(worst[0], now - last - 0.001), now

    thread = threading.Thread(target=run)
    thread.start()
    yield worst
    ended.set()
    thread.join()


def measure(name: str, make: Callable[[], int]) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    with watched() as worst:
        count = make()
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(  # noqa: T201
        f"{name:28} {wall:5.2f} s, {cpu:5.2f} s CPU, {count} rows, waited {worst[0] * 1e3:.0f} ms"
    )


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with TemporaryDirectory() as folder:
        path = Path(folder) / "money.db"
        fill(path, count)
        writer, clock = Writer(path, synchronous="NORMAL"), at("2026-12-01T00:00Z")
        with closing(writer), Reader(path) as reader:
            reports = Reports(reader)
            book = PriceBook(writer, reader, node_id="n", clock=clock)
            facts: dict[str, Any] = {"secret": bytes(32), "node_id": "n", "clock": clock}
            statements = Statements(reports, book, **facts)
            for by in ("org", "day,org,key", "hour,key,model", "price"):
                query = Query(by=tuple(by.split(",")), zone="Europe/Berlin", **MONTH)
                measure(f"usage by {by}", lambda query=query: len(reports.usage(query)))
            measure("costs by org", lambda: len(reports.costs(Query(**MONTH))))
            measure("statement of one in ten", lambda: _entries(statements.make("org3", "2026-11")))
            own = Query(within_org="org3", **MONTH)
            measure("focus of one in ten", lambda: len(list(focus(reports, statements, own))))


def _entries(whole: dict[str, Any]) -> int:
    return int(whole["statement"]["entries"]["count"])


if __name__ == "__main__":
    main()
