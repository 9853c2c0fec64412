"""`llmhost invoice`: the signed statement of a month, and the check of one."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from llmhost.cli import show
from llmhost.cli.admin import Row, open_admin
from llmhost.cli.options import DataDir, Json, Url, examples
from llmhost.cli.tables import as_csv, focus_csv
from llmhost.core.errors import ConfigError

COLUMNS: dict[str, show.Cell] = {
    "team": "team",
    "key": "key",
    "model": "model",
    "what": lambda row: _what(row),
    "price": "price",
    "quantity": "quantity",
    "unit price": lambda row: _unit(row),
    "amount": lambda row: f"${row['amount_usd']}",
}


class Invoice(TyperGroup):
    """What is no command is the name of an organisation, whose invoice is shown."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


invoice = typer.Typer(
    name="invoice",
    cls=Invoice,
    help="Make and check the signed statement of a month. `invoice ORG` is short for `invoice show ORG`.",
    no_args_is_help=True,
    epilog=examples(
        "llmhost invoice show acme --month 2026-11",
        "llmhost invoice verify acme-2026-11.json --entries acme-2026-11.jsonl",
    ),
)


def add_to(app: typer.Typer) -> None:
    app.add_typer(invoice)


@invoice.command(
    name="show",
    epilog=examples(
        "llmhost invoice show acme --month 2026-11",
        "llmhost invoice show acme --month 2026-11 --json > acme-2026-11.json",
        "llmhost invoice show acme --month 2026-11 --timezone Europe/Berlin --format markdown",
    ),
)
def show_invoice(
    org: Annotated[str, typer.Argument(metavar="ORG", help="Whose.")],
    month: Annotated[str, typer.Option(metavar="MONTH", help="Such as 2026-11.")],
    timezone: Annotated[
        str, typer.Option(metavar="ZONE", help="Of which zone the month is, as Europe/Berlin.")
    ] = "UTC",
    form: Annotated[
        Literal["text", "markdown", "csv", "json", "focus"],
        typer.Option(
            "--format",
            help="Only JSON is signed and can be checked; focus is CSV with the columns of FOCUS 1.2.",
        ),
    ] = "text",
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Print an organisation's statement of a month: quantity, price and amount for each line."""
    with open_admin(url, data_dir) as admin:
        if form == "focus" and not as_json:
            rows = admin.focus(org=[org], month=month, timezone=timezone)
            typer.echo(focus_csv(rows), nl=False)
            return
        whole = admin.invoice(org, month=month, timezone=timezone)
    said = whole["statement"]
    if as_json or form == "json":
        show.value(whole)
    elif form == "csv":
        typer.echo(as_csv(said["lines"]), nl=False)
    elif form == "markdown":
        typer.echo(_markdown(whole))
    else:
        typer.echo(_text(whole))


@invoice.command(
    epilog=examples(
        "llmhost invoice verify acme-2026-11.json",
        "llmhost invoice verify acme-2026-11.json --entries acme-2026-11.jsonl --public-key 6f0c...",
    )
)
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The statement, as JSON.")],
    entries: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its entries, from `llmhost ledger entries --month`."),
    ] = None,
    public_key: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="The key that is trusted; the file's own when absent."),
    ] = None,
    previous: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The statement of the month before.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a statement's signature and sums, and its entries where they are given. Needs no node. Exits with 1."""
    from llmhost.cost.statement_check import check

    whole = _read(file)
    verdict = check(
        whole,
        entries=None if entries is None else _read_lines(entries),
        public_key=public_key,
        previous=None if previous is None else _read(previous),
    )
    if as_json:
        show.value(
            {"ok": verdict.is_good, "checked": verdict.checked, "problems": verdict.problems}
        )
    else:
        for problem in verdict.problems:
            show.note(show.printable(problem))
        if verdict.is_good:
            typer.echo(f"The statement holds: {', '.join(verdict.checked)}.")
            if public_key is None:
                used = whole["signature"]["public_key"]
                show.note(f"It was signed with {used}. Compare that with what your operator says.")
    if not verdict.is_good:
        raise typer.Exit(1)


@invoice.command(epilog=examples("llmhost invoice key", "llmhost invoice key --json"))
def key(url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Print the public key that this node's statements are checked with."""
    with open_admin(url, data_dir) as admin:
        row = admin.statement_key()
    if as_json:
        show.value(row)
    else:
        typer.echo(row["public_key"])


def _text(whole: Row) -> str:
    said = whole["statement"]
    facts = "\n".join(f"{name:13} {show.printable(str(fact))}" for name, fact in _facts(whole))
    lines = show.table(said["lines"], COLUMNS) if said["lines"] else "Nothing was used."
    sums = "\n".join(f"{name:13} {amount}" for name, amount in _sums(said))
    return f"{facts}\n\n{lines}\n\n{sums}"


def _markdown(whole: Row) -> str:
    said = whole["statement"]
    title = f"# Statement of {said['organisation']} for {said['month']}"
    facts = [f"- {name}: {_escaped(fact)}" for name, fact in _facts(whole)[1:]]
    head = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    rows = [
        f"| {' | '.join(_escaped(_cell(row, cell)) for cell in COLUMNS.values())} |"
        for row in said["lines"]
    ]
    sums = [f"- {name}: **{amount}**" for name, amount in _sums(said)]
    return "\n".join([_escaped(title), "", *facts, "", *head, *rows, "", *sums])


def _facts(whole: Row) -> list[tuple[str, object]]:
    said, entries = whole["statement"], whole["statement"]["entries"]
    period = f"{said['period']['since']} to {said['period']['until']} ({said['timezone']})"
    is_open = "" if said["is_complete"] else " (the month is not over)"
    return [
        ("statement", f"{said['organisation']}, {said['month']}{is_open}"),
        ("period", period),
        ("issued", f"{said['issued_at']} by {said['node_id']}"),
        ("entries", f"{entries['count']}, digest {entries['digest']}"),
        ("ledger head", f"{said['head']['seq']}, {said['head']['hash']}"),
        ("public key", whole["signature"]["public_key"]),
        ("rule", said["rule"]),
    ]


def _sums(said: Row) -> list[tuple[str, str]]:
    totals = said["totals"]
    return [
        ("requests", str(totals["requests"])),
        ("credits", f"${totals['credits_usd']}"),
        ("charged", f"${totals['charged_usd']}"),
    ]


def _what(row: show.Row) -> str:
    if row["sort"] in ("correction", "credit"):
        return str(row["kind"])
    return str(row["dimension"]) + ("" if row["sort"] == "use" else ", not charged")


def _unit(row: show.Row) -> str | None:
    price = row["unit_price_usd"]
    if price is None:
        return None
    return f"${price}" if row["per"] == 1 else f"${price}/M"


def _cell(row: Row, cell: show.Cell) -> object:
    return row.get(cell) if isinstance(cell, str) else cell(row)


def _escaped(text: object) -> str:
    shown = "-" if text is None else show.printable(str(text)).replace("\n", " ")
    return shown.replace("|", "\\|").replace("<", "&lt;")


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file} can't be read: {error.strerror}.") from None
    except ValueError:
        raise ConfigError(f"{file} is not JSON.") from None


def _read_lines(file: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in file.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"{file} can't be read: {error.strerror}.") from None
    except ValueError:
        raise ConfigError(f"{file} is not JSON, one object a line.") from None
