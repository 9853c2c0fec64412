"""`llmhost usage` and `llmhost ledger`: what was used, what it costs, and the proof."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import typer

from llmhost.cli import show
from llmhost.cli.admin import Row, open_admin
from llmhost.cli.options import DataDir, Json, Url, examples

ledger = typer.Typer(
    name="ledger",
    help="Check and export the append-only record of every charge.",
    no_args_is_help=True,
    epilog=examples("llmhost ledger verify", "llmhost ledger export > ledger.jsonl"),
)
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "llmhost usage",
            "llmhost usage --by team --since 2026-01-01 --until 2026-02-01",
            "llmhost usage --by model --since 24h --json",
            "llmhost usage --costs --by model",
            "llmhost usage --devices --since 7d",
        )
    )(usage)
    app.add_typer(ledger)


def when(text: str, now: datetime) -> datetime:
    """`2026-01-31`, `2026-01-31T12:00`, or `7d` ago; UTC unless it says otherwise. Raises ValueError."""
    if match := re.fullmatch(r"(\d{1,4})([hdw])", text):
        return now - timedelta(**{_UNITS[match[2]]: int(match[1])})
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def usage(
    by: Annotated[
        Literal["key", "team", "org", "model", "day"], typer.Option(help="What to add up for.")
    ] = "org",
    since: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="From this date (UTC) on, or 24h, 7d, 4w ago."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="DATE", help="Up to, and without, this date.")
    ] = None,
    costs: Annotated[
        bool,
        typer.Option(
            "--costs", help="What they cost, by pool, and the margin.", show_default=False
        ),
    ] = False,
    devices: Annotated[
        bool,
        typer.Option(
            "--devices", help="What devices cost, busy, loading and idle.", show_default=False
        ),
    ] = False,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Add up requests, tokens, machine time and charges."""
    start, end = _date(since, "--since"), _date(until, "--until")
    if start and end and start >= end:
        raise typer.BadParameter("must lie before --until", param_hint="--since")
    if costs and devices:
        raise typer.BadParameter("is another report than --costs", param_hint="--devices")
    with open_admin(url, data_dir) as admin:
        if costs:
            _show_costs(admin.costs(by=by, since=start, until=end), by, as_json=as_json)
            return
        if devices:
            _show_devices(admin.device_costs(since=start, until=end), as_json=as_json)
            return
        data = admin.usage(by=by, since=start, until=end)
    columns: dict[str, show.Cell] = {
        by: by,
        "requests": "requests",
        "input": "fresh_input_tokens",
        "cached": "cached_input_tokens",
        "output": "output_tokens",
        "engine s": lambda row: f"{(row.get('engine_ns') or 0) / 1e9:.3f}",
        "charged": lambda row: show.dollars(row.get("amount_nano")),
    }
    show.rows(data, columns, as_json=as_json, empty="Nothing was used in that time.")


def _show_costs(data: list[Row], by: str, *, as_json: bool) -> None:
    columns: dict[str, show.Cell] = {
        by: by,
        "requests": "requests",
        "compute": _dollars("gpu_compute_nano"),
        "infrastructure": _dollars("infrastructure_nano"),
        "loading": _dollars("model_loading_nano"),
        "safety": _dollars("safety_moderation_nano"),
        "cost": _dollars("cost_nano"),
        "charged": _dollars("amount_nano"),
        "margin": _dollars("margin_nano"),
    }
    show.rows(data, columns, as_json=as_json, empty="Nothing was used in that time.")


def _show_devices(data: list[Row], *, as_json: bool) -> None:
    columns: dict[str, show.Cell] = {
        "device": "device",
        "busy s": _seconds("busy_ns"),
        "loading s": _seconds("load_ns"),
        "idle s": _seconds("idle_ns"),
        "callers": _dollars("callers_nano"),
        "operator": _dollars("operator_nano"),
        "loading": _dollars("load_nano"),
        "idle": _dollars("idle_nano"),
        "error": _dollars("error_nano"),
    }
    show.rows(data, columns, as_json=as_json, empty="Nothing was checked in that time.")


def _dollars(name: str) -> show.Cell:
    return lambda row: show.dollars(row.get(name))


def _seconds(name: str) -> show.Cell:
    return lambda row: f"{(row.get(name) or 0) / 1e9:.3f}"


@ledger.command(epilog=examples("llmhost ledger verify", "llmhost ledger verify --json"))
def verify(url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Check that no entry was changed, removed or added later. Exits with 1 if one was."""
    with open_admin(url, data_dir) as admin:
        row = admin.verify_ledger()
    if as_json:
        show.value(row)
    elif row["ok"]:
        typer.echo(f"The ledger is whole: {row['entries']} entries, head {row['head']}")
    else:
        show.note(f"The ledger is damaged: {row['problem']}")
    if not row["ok"]:
        raise typer.Exit(1)


@ledger.command(
    epilog=examples("llmhost ledger export > ledger.jsonl", "llmhost ledger export --json")
)
def export(
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The only form there is.", show_default=False)
    ] = True,
) -> None:
    """Print every entry as JSON, one object a line, oldest first."""
    with open_admin(url, data_dir) as admin:
        for row in admin.export_ledger():
            typer.echo(json.dumps(row, ensure_ascii=False))


def _date(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    try:
        return when(text, datetime.now(UTC))
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is not a date such as 2026-01-31, nor an age such as 7d", param_hint=option
        ) from None
