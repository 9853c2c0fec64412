"""How fast the ledger settles requests, on the disk at hand: `python tests/bench/bench_ledger.py [FOLDER]`.

Every row is forced to disk before it counts. Settle time is from `settle` to the future's resolution.
CPU is of the whole process, loop and threads, and so tells what a row costs on a machine that others use too.
The last columns are the longest that the event loop was held by what settled at once, in CPU time, and by how much a
tick of 2 ms came late, which others on the machine make later.
"""

import asyncio
import gc
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from llmhost.core.ids import new_request_id
from llmhost.cost import rows, tables
from llmhost.cost.entries import Entry
from llmhost.cost.ledger import Ledger
from llmhost.host.garbage import THRESHOLDS
from llmhost.schedule.interpreter import RELAXED_S
from llmhost.storage.doorbell import Doorbell
from llmhost.storage.reader import Reader
from llmhost.storage.writer import PACE_S, Writer

TICK_S = 0.002


class WallClock:
    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def utc_ns(self) -> int:
        return time.time_ns()


def entry() -> Entry:
    return Entry(
        request_id=new_request_id(),
        utc_ns=time.time_ns(),
        key_id="AbCdEfGhIjKl",
        org="acme",
        team="search",
        model="tiny@1",
        outcome="answered",
        fresh_input_tokens=1_000,
        cached_input_tokens=500,
        output_tokens=200,
        engine_ns=40_000_000,
        price_version="tiny/1",
        amount_nano=123_456,
    )


def say(*cells: object) -> None:
    sys.stdout.write("".join(f"{cell!s:>14}" for cell in cells) + "\n")
    sys.stdout.flush()


class Held:
    """How long the event loop was held by the ledger, and how late its ticks came."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.late_s: list[float] = []
        self._answer = Doorbell._answer

    def __enter__(self) -> "Held":
        answer = self._answer

        def timed(bell: Doorbell) -> None:
            begin = time.thread_time()
            answer(bell)
            self.longest_s = max(self.longest_s, time.thread_time() - begin)

        Doorbell._answer = timed  # type: ignore[method-assign]
        self._ticking = asyncio.ensure_future(self._tick())
        return self

    def __exit__(self, *_: object) -> None:
        Doorbell._answer = self._answer  # type: ignore[method-assign]
        self._ticking.cancel()

    async def _tick(self) -> None:
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(TICK_S)
            self.late_s.append(time.perf_counter() - begin - TICK_S)

    def cells(self) -> tuple[str, str]:
        return f"{self.longest_s * 1e3:.2f}", quantiles(self.late_s)[1]


def micro(seconds: float) -> str:
    return f"{seconds * 1e6:.0f}"


def quantiles(times_s: Iterable[float]) -> tuple[str, str, str]:
    ordered = sorted(times_s)
    return tuple(
        f"{ordered[min(int(len(ordered) * q), len(ordered) - 1)] * 1e3:.1f}"
        for q in (0.5, 0.99, 1.0)
    )  # type: ignore[return-value]


async def closed_loop(ledger: Ledger, tasks: int, seconds: float) -> None:
    """Each of `tasks` records the next row when its last one is on disk."""
    times: list[float] = []
    until = time.perf_counter() + seconds

    async def worker() -> None:
        while (begin := time.perf_counter()) < until:
            await ledger.settle(entry())
            times.append(time.perf_counter() - begin)

    begin, cpu = time.perf_counter(), time.process_time()
    with Held() as held:
        await asyncio.gather(*(worker() for _ in range(tasks)))
    took, cpu = time.perf_counter() - begin, time.process_time() - cpu
    rows = len(times)
    figures = (*quantiles(times), micro(cpu / rows), *held.cells())
    say(f"{tasks} at once", "", f"{rows / took:.0f}", *figures)


async def open_loop(ledger: Ledger, rate: int, seconds: float) -> None:
    """Rows come at a fixed rate, whether or not earlier ones are done."""
    times: list[float] = []
    pending: list[asyncio.Future[None]] = []

    async def one() -> None:
        begin = time.perf_counter()
        await ledger.settle(entry())
        times.append(time.perf_counter() - begin)

    begin, cpu = time.perf_counter(), time.process_time()
    number = 0
    with Held() as held:
        while (passed := time.perf_counter() - begin) < seconds:
            while number < passed * rate:
                pending.append(asyncio.ensure_future(one()))
                number += 1
            await asyncio.sleep(0.001)
        await asyncio.gather(*pending)
    took, cpu = time.perf_counter() - begin, time.process_time() - cpu
    rows = len(times)
    figures = (*quantiles(times), micro(cpu / rows), *held.cells())
    say("open", rate, f"{rows / took:.0f}", *figures)


def burst(ledger: Ledger, rows: int) -> None:
    """Everything at once from one thread."""
    entries = [entry() for _ in range(rows)]
    begin, cpu = time.perf_counter(), time.process_time()
    futures = [ledger.record(one) for one in entries]
    for future in futures:
        future.result()
    took, cpu = time.perf_counter() - begin, time.process_time() - cpu
    say("burst", rows, f"{rows / took:.0f}", "", "", f"{took * 1e3:.0f}", micro(cpu / rows))


def main(folder: Path) -> None:
    path = folder / "money.db"
    sys.stdout.write(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version},"
        f" synchronous=FULL, {folder}\n"
    )
    sys.setswitchinterval(RELAXED_S)  # as a node does, and the next line too
    gc.set_threshold(*THRESHOLDS)
    names = ("rows/s asked", "rows/s", "p50 ms", "p99 ms", "max ms", "CPU us/row")
    say("load", *names, "held CPU ms", "tick p99 ms")
    with (
        Writer(
            path, migrations=[tables.SCHEMA, rows.SCHEMA], max_queue=100_000, pace_s=PACE_S
        ) as writer,
        Reader(path) as reader,
    ):
        ledger = Ledger(writer, reader, node_id="node-1", clock=WallClock())
        for tasks in (1, 16, 64, 256, 1024):
            asyncio.run(closed_loop(ledger, tasks, 2.0))
        for rate in (100, 1_000, 5_000, 10_000):
            asyncio.run(open_loop(ledger, rate, 3.0))
        burst(ledger, 50_000)
        begin = time.perf_counter()
        report = ledger.verify()
        took = time.perf_counter() - begin
        drift = ledger.drift()
    if not report.is_intact or any(drift.values()):
        raise SystemExit(f"the ledger is not whole: {report.broken}, {drift}")
    say("verify", "", f"{report.rows / took:.0f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
