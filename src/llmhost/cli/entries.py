"""`llmhost ledger entries`: single entries of some time, for people and for those who check a statement."""

import json
from typing import Annotated, Any, Literal

import typer

from llmhost.cli import show
from llmhost.cli.admin import Row, open_admin
from llmhost.cli.dates import Since, Until, Zone, span_of
from llmhost.cli.ledger import ledger
from llmhost.cli.options import DataDir, Keys, Models, Orgs, Teams, Url, examples
from llmhost.cli.tables import report

_COLUMNS: dict[str, show.Cell] = {
    "seq": "seq",
    "time": lambda row: show.date(row["utc_ns"] / 1e9),
    "request": "request_id",
    "kind": "kind",
    "org": "org",
    "team": "team",
    "key": "key_id",
    "model": "model",
    "outcome": "outcome",
    "input": "fresh_input_tokens",
    "cached": "cached_input_tokens",
    "output": "output_tokens",
    "price": "price_version",
    "amount": lambda row: show.dollars(row["amount_nano"]),
}


def add_to(_: typer.Typer) -> None:
    """It is a command of `llmhost ledger`, which is there already."""


@ledger.command(
    epilog=examples(
        "llmhost ledger entries --org acme --month 2026-11 > acme-2026-11.jsonl",
        "llmhost ledger entries --since 24h --format table",
        "llmhost ledger entries --key 3f9c0a1b2c4d --since 7d --format csv",
    )
)
def entries(
    month: Annotated[
        str | None, typer.Option(metavar="MONTH", help="Of this month, such as 2026-11.")
    ] = None,
    since: Since = None,
    until: Until = None,
    timezone: Zone = None,
    org: Orgs = None,
    team: Teams = None,
    key: Keys = None,
    model: Models = None,
    form: Annotated[
        Literal["jsonl", "table", "csv"], typer.Option("--format", help="How to print them.")
    ] = "jsonl",
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Short for --format jsonl.", show_default=False)
    ] = False,
) -> None:
    """Print entries of a month or any other time, in order of time: what a statement is checked with."""
    start, end = span_of(since, until, timezone)
    if month is not None and (start or end):
        raise typer.BadParameter("says the time already", param_hint="--month")
    query: dict[str, Any] = {"month": month, "since": start, "until": end, "timezone": timezone}
    query |= {"org": org, "team": team, "key": key, "model": model}
    asked = {name: one for name, one in query.items() if one}
    with open_admin(url, data_dir) as admin:
        found = admin.entries(**asked)
        if as_json or form == "jsonl":
            for row in found:
                typer.echo(json.dumps(row, ensure_ascii=False))
        else:
            rows = [_flat(row) for row in found]
            report(rows, _COLUMNS, form=form, empty="There are no entries of that time.")


def _flat(row: Row) -> Row:
    """Tokens in columns of their own."""
    tokens = {f"{name}_tokens": count for name, count in row["tokens"].items()}
    return {**{name: value for name, value in row.items() if name != "tokens"}, **tokens}
