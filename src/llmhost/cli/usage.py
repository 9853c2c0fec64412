"""`llmhost usage`: what was used, and what it costs."""

from typing import Annotated, Any

import typer

from llmhost.cli import show
from llmhost.cli.admin import Row, open_admin
from llmhost.cli.dates import Since, Until, Zone, span_of
from llmhost.cli.options import DataDir, Json, Keys, Models, Orgs, Teams, Url, examples
from llmhost.cli.tables import UsageForm, focus_csv, form_of, report

GROUPS = (
    "org",
    "team",
    "key",
    "model",
    "run",
    "adapter",
    "cache",
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
            "llmhost usage --format focus --org acme --since 2026-11-01 --until 2026-12-01",
            "llmhost usage --devices --since 7d",
        )
    )(usage)


def usage(
    by: Annotated[
        str,
        typer.Option(
            metavar="GROUPS",
            help="What to add up for, several with commas between: org, team, key, model, run, adapter,"
            " cache, kind, outcome, price, and one of minute, hour, day, month.",
        ),
    ] = "org",
    since: Since = None,
    until: Until = None,
    timezone: Zone = None,
    org: Orgs = None,
    team: Teams = None,
    key: Keys = None,
    model: Models = None,
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
    form: UsageForm = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Add up requests, tokens, machine time and charges."""
    start, end = span_of(since, until, timezone)
    if costs and devices:
        raise typer.BadParameter("is another report than --costs", param_hint="--devices")
    shape = form_of(form, as_json=as_json)
    groups = groups_of(by)
    query: dict[str, Any] = {"by": ",".join(groups), "since": start, "until": end}
    query |= {"timezone": timezone, "org": org, "team": team, "key": key, "model": model}
    query = {name: asked for name, asked in query.items() if asked}
    if shape == "focus" and (costs or devices):
        raise typer.BadParameter("has charges only", param_hint="--format")
    with open_admin(url, data_dir) as admin:
        if shape == "focus":
            del query["by"]
            typer.echo(focus_csv(admin.focus(**query)), nl=False)
        elif devices:
            bounds = {name: query[name] for name in ("since", "until") if name in query}
            _show_devices(admin.device_costs(**bounds), form=shape)
        elif costs:
            report(admin.costs(**query), _columns(groups, _COSTS), form=shape, hidden=("id",))
        else:
            rows = admin.usage(**query)
            report(rows, _columns(groups, _used(rows)), form=shape, hidden=("id",))


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


def _used(rows: list[Row]) -> dict[str, show.Cell]:
    """Thoughts and embedded texts have columns where there are any."""
    rare: dict[str, show.Cell] = {
        name: f"{name}_tokens"
        for name in ("reasoning", "embedding")
        if any(row.get(f"{name}_tokens") for row in rows)
    }
    columns = list(_USED.items())
    return dict([*columns[:4], *rare.items(), *columns[4:]])


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
