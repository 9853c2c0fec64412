"""`llmhost usage`: what was used, and what it costs."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from llmhost.cli import show
from llmhost.cli.admin import Row, open_admin
from llmhost.cli.dates import as_utc, moment
from llmhost.cli.options import DataDir, Json, Url, examples
from llmhost.cli.tables import FormOption, form_of, report

GROUPS = (
    "org",
    "team",
    "key",
    "model",
    "kind",
    "outcome",
    "price",
    "minute",
    "hour",
    "day",
    "month",
)
TIMES = GROUPS[-4:]


def _dollars(name: str) -> show.Cell:
    return lambda row: show.dollars(row.get(name))


def _seconds(name: str) -> show.Cell:
    return lambda row: f"{(row.get(name) or 0) / 1e9:.3f}"


_USED: dict[str, show.Cell] = {
    "requests": "requests",
    "input": "fresh_input_tokens",
    "cached": "cached_input_tokens",
    "output": "output_tokens",
    "engine s": _seconds("engine_ns"),
    "charged": _dollars("amount_nano"),
}
_COSTS: dict[str, show.Cell] = {
    "requests": "requests",
    "compute": _dollars("gpu_compute_nano"),
    "infrastructure": _dollars("infrastructure_nano"),
    "loading": _dollars("model_loading_nano"),
    "safety": _dollars("safety_moderation_nano"),
    "cost": _dollars("cost_nano"),
    "charged": _dollars("amount_nano"),
    "margin": _dollars("margin_nano"),
}


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "llmhost usage",
            "llmhost usage --by team --since 2026-01-01 --until 2026-02-01",
            "llmhost usage --by org,model --since 24h --json",
            "llmhost usage --by day --org acme --timezone Europe/Berlin --format csv",
            "llmhost usage --margin --by org,model",
            "llmhost usage --devices --since 7d",
        )
    )(usage)


def usage(
    by: Annotated[
        str,
        typer.Option(
            metavar="GROUPS",
            help="What to add up for, several with commas between: org, team, key, model, kind, outcome, price,"
            " and one of minute, hour, day, month.",
        ),
    ] = "org",
    since: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="From this date on, or 24h, 7d, 4w ago."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="DATE", help="Up to, and without, this date.")
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(
            metavar="ZONE",
            help="Of dates, hours, days and months, as in Europe/Berlin; UTC when absent.",
        ),
    ] = None,
    org: Annotated[
        list[str] | None,
        typer.Option(metavar="ORG", help="Of this organisation only; may be repeated."),
    ] = None,
    team: Annotated[
        list[str] | None, typer.Option(metavar="TEAM", help="Of this team only: TEAM or ORG/TEAM.")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Of the key with this id only.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="Of this model only: NAME or NAME@VERSION."),
    ] = None,
    costs: Annotated[
        bool,
        typer.Option(
            "--costs",
            "--margin",
            help="What they cost, by pool, and the margin.",
            show_default=False,
        ),
    ] = False,
    devices: Annotated[
        bool,
        typer.Option(
            "--devices", help="What devices cost, busy, loading and idle.", show_default=False
        ),
    ] = False,
    form: FormOption = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Add up requests, tokens, machine time and charges."""
    now = datetime.now(UTC)
    start, end = moment(since, "--since", timezone, now), moment(until, "--until", timezone, now)
    if start and end and as_utc(start) >= as_utc(end):
        raise typer.BadParameter("must lie before --until", param_hint="--since")
    if costs and devices:
        raise typer.BadParameter("is another report than --costs", param_hint="--devices")
    shape = form_of(form, as_json=as_json)
    groups = groups_of(by)
    query: dict[str, Any] = {"by": ",".join(groups), "since": start, "until": end}
    query |= {"timezone": timezone, "org": org, "team": team, "key": key, "model": model}
    query = {name: asked for name, asked in query.items() if asked}
    with open_admin(url, data_dir) as admin:
        if devices:
            bounds = {name: query[name] for name in ("since", "until") if name in query}
            _show_devices(admin.device_costs(**bounds), form=shape)
        elif costs:
            report(admin.costs(**query), _columns(groups, _COSTS), form=shape, hidden=("id",))
        else:
            report(admin.usage(**query), _columns(groups, _USED), form=shape, hidden=("id",))


def groups_of(by: str) -> list[str]:
    """The names with commas between, checked."""
    groups = [name.strip() for name in by.split(",") if name.strip()]
    for name in groups:
        if name not in GROUPS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(GROUPS)}", param_hint="--by")
    if len(set(groups)) < len(groups) or sum(name in TIMES for name in groups) > 1:
        raise typer.BadParameter("a name may come once, and one unit of time", param_hint="--by")
    return groups


def _columns(groups: list[str], rest: dict[str, show.Cell]) -> dict[str, show.Cell]:
    return {**{name: name for name in groups}, **rest}


def _show_devices(data: list[Row], *, form: str) -> None:
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
    report(data, columns, form=form, empty="Nothing was checked in that time.")
