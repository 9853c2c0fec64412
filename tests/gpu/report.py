"""What was measured, kept as soon as it is known, and one table of it at the end."""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

COLUMNS = ("what", "unit", "floor", "ours", "ratio", "peer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One quantity: what the hardware allows, what we take, and what transformers takes; any of them may be unknown."""

    what: str
    unit: str
    ours: float | None = None
    floor: float | None = None
    """The least time, or the highest rate."""
    peer: float | None = None
    note: str = ""

    def joined(self, other: "Figure") -> "Figure":
        """Both halves of a quantity that was measured in two places."""
        return Figure(
            what=self.what,
            unit=self.unit,
            ours=self.ours if other.ours is None else other.ours,
            floor=self.floor if other.floor is None else other.floor,
            peer=self.peer if other.peer is None else other.peer,
            note="; ".join(filter(None, (self.note, other.note))),
        )


class Report:
    """Figures on the screen and, one JSON object a line, in a file: a run may be cut at any moment."""

    def __init__(self, path: Path | None, card: str = "") -> None:
        """`card` is what the figures are of; it stands with each."""
        self.path = path
        self.card = card
        self.figures: list[Figure] = []
        self._began = time.monotonic()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)
        self.say(
            f"  {figure.what}: ours {_shown(figure.ours)}, floor {_shown(figure.floor)},"
            f" peer {_shown(figure.peer)} {figure.unit} {figure.note} [{self.card}]"
        )
        self.keep({"card": self.card, **asdict(figure)})

    def keep(self, fact: dict[str, Any]) -> None:
        """For the file alone."""
        if self.path is not None:
            with self.path.open("a") as lines:
                lines.write(json.dumps(fact) + "\n")

    def say(self, text: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - self._began:6.1f} s] {text}\n")
        sys.stdout.flush()

    def table(self) -> str:
        """A line for each quantity, in the order in which they were first heard of."""
        joined: dict[str, Figure] = {}
        for figure in self.figures:
            known = joined.get(figure.what)
            joined[figure.what] = figure if known is None else known.joined(figure)
        rows = [COLUMNS, *(_cells(figure) for figure in joined.values())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if place < 2 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([f"{self.card}:", *lines] if self.card else lines)


def _cells(figure: Figure) -> tuple[str, ...]:
    ratio = figure.ours / figure.floor if figure.ours and figure.floor else None
    numbers = (figure.floor, figure.ours, ratio, figure.peer)
    return (figure.what, figure.unit, *map(_shown, numbers))


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
