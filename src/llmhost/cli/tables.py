"""Reports in the forms that programs and people read: a table, CSV, JSON."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import typer

from llmhost.cli import show
from llmhost.cli.show import Cell, Row

UsageForm = Annotated[
    Literal["table", "csv", "json", "focus"] | None,
    typer.Option(
        "--format",
        help="How to print it; table when absent. focus: charges by day as FOCUS 1.2 has them, as CSV.",
    ),
]


def form_of(form: str | None, *, as_json: bool) -> str:
    """`--json` is short for `--format json`."""
    if as_json and form not in (None, "json"):
        raise typer.BadParameter(f"contradicts --format {form}", param_hint="--json")
    return "json" if as_json else form or "table"


def report(
    data: Sequence[Row],
    columns: Mapping[str, Cell],
    *,
    form: str,
    hidden: Iterable[str] = (),
    empty: str = "Nothing was used in that time.",
) -> None:
    """Print rows. A table has the columns, the other forms all that the rows say but what is `hidden`."""
    skipped = set(hidden)
    plain = [{name: cell for name, cell in row.items() if name not in skipped} for row in data]
    if form == "csv":
        typer.echo(as_csv(plain), nl=False)
    else:
        show.rows(plain, columns, as_json=form == "json", empty=empty)


def focus_csv(data: Sequence[Row]) -> str:
    """Charges in the columns of FOCUS, which are there even if there is no charge."""
    from llmhost.cost.focus import COLUMNS

    return as_csv(data, COLUMNS)


def as_csv(data: Sequence[Row], columns: Sequence[str] = ()) -> str:
    """With a line of names: the columns, or else all that the rows have.

    A cell that begins like a formula of a spreadsheet is quoted so that it is none.
    """
    out = io.StringIO()
    names = list(columns or dict.fromkeys(name for row in data for name in row))
    writer = csv.writer(out, lineterminator="\n")
    if names:
        writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in data)
    return out.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text[:1] in "=+@\t\r" and text else text
