"""A progress bar on stderr, for people who wait; nothing for programs and pipes."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmhost.cli.bench.figures import Record

Advance = Callable[[int, str], None]
"""Told how much is done, and what to say beside it."""


@contextmanager
def progress(title: str, total: int | None, *, is_wanted: bool) -> Iterator[Advance]:
    """A bar until the block ends. It leaves nothing behind."""
    if not is_wanted or not sys.stderr.isatty():
        yield lambda done, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(title, total=total, said="")
        yield lambda done, text: bars.update(bar, completed=done, said=text)


def watch_requests(advance: Advance) -> Callable[[list[Record]], None]:
    """Says how many requests run, and how fast answers come."""
    began = time.perf_counter()

    def watch(records: list[Record]) -> None:
        done = sum(record.ended_s is not None for record in records)
        pieces = sum(record.pieces for record in records)
        rate = pieces / max(time.perf_counter() - began, 1e-9)
        advance(done, f"{len(records) - done} running, {rate:,.0f} pieces/s")

    return watch
