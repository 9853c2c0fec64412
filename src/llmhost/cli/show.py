"""How answers look: JSON for programs, plain columns for people. Columns are never cut to a terminal's width."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import typer

Row = Mapping[str, Any]
Cell = str | Callable[[Row], object]
"""A key of the row, or what to make of the row."""

_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def rows(data: Sequence[Row], columns: Mapping[str, Cell], *, as_json: bool, empty: str) -> None:
    """Print a list. `empty` says, on stderr, why there is nothing to see."""
    if as_json:
        value(list(data))
    elif not data:
        note(empty)
    else:
        typer.echo(table(data, columns))


def facts(row: Row, *, as_json: bool) -> None:
    """Print one thing: a line for each fact, with times as dates."""
    if as_json:
        value(dict(row))
        return
    width = max(map(len, row))
    for name, fact in row.items():
        shown = date(fact) if name.endswith("_at") else fact
        typer.echo(f"{name.ljust(width)}  {_text(shown)}")


def value(anything: Any) -> None:
    typer.echo(json.dumps(anything, indent=2, ensure_ascii=False))


def note(text: str) -> None:
    """For people, on stderr, so that what a program reads stays clean."""
    typer.echo(text, err=True)


def table(data: Iterable[Row], columns: Mapping[str, Cell]) -> str:
    cells = [[_text(_pick(row, cell)) for cell in columns.values()] for row in data]
    numeric = [all(_is_number(line[i]) for line in cells) for i in range(len(columns))]
    lines = [[title.upper() for title in columns], *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def printable(text: str) -> str:
    """Without control characters: text from elsewhere may not steer the terminal."""
    return text.translate(_CONTROLS)


def memory(count: int | None) -> str | None:
    from llmhost.core.units import show_bytes

    return None if count is None else show_bytes(count)


def dollars(nano: int | None) -> str | None:
    from llmhost.core.units import nano_to_dollars

    return None if nano is None else f"${nano_to_dollars(nano)}"


def price(parts: Row | None) -> str | None:
    """`0.10 / 0.01 / 0.40`: dollars per million input, cached and output tokens."""
    if not parts:
        return None
    return " / ".join(str(parts.get(key) or "-") for key in ("input", "cached_input", "output"))


def date(seconds: float | None) -> str | None:
    """Unix seconds as a UTC date and time."""
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def age(since_ns: int | None, now_ns: int | None = None) -> str | None:
    """`3h`: how long ago, in one unit."""
    if since_ns is None:
        return None
    seconds = max(0, (time.time_ns() if now_ns is None else now_ns) - since_ns) // 1_000_000_000
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _pick(row: Row, cell: Cell) -> object:
    return row.get(cell) if isinstance(cell, str) else cell(row)


def _text(cell: object) -> str:
    if cell is None or cell == [] or cell == ():
        return "-"
    if isinstance(cell, list | tuple):
        return printable(", ".join(map(str, cell)))
    return printable(str(cell)).replace("\n", " ").replace("\t", " ")


def _is_number(text: str) -> bool:
    return text == "-" or text.lstrip("$-").replace(".", "", 1).isdecimal()
