"""`llmhost orgs` and `llmhost teams`: who owns keys, pays and shares limits."""

from typing import Annotated, Any

import typer

from llmhost.cli import limits, show
from llmhost.cli.admin import open_admin
from llmhost.cli.options import (
    BudgetPeriod,
    BudgetUsd,
    DataDir,
    Json,
    Url,
    examples,
    first_budget,
)

orgs = typer.Typer(
    name="orgs",
    help="Make and list organisations, which own keys and pay bills.",
    no_args_is_help=True,
    epilog=examples("llmhost orgs create acme", "llmhost orgs list"),
)
teams = typer.Typer(
    name="teams",
    help="Make and list teams, whose keys share limits and are reported together.",
    no_args_is_help=True,
    epilog=examples("llmhost teams create search --org acme", "llmhost teams list --org acme"),
)

OrgName = Annotated[str, typer.Argument(metavar="NAME", help="What keys and bills call it.")]
TeamName = Annotated[str, typer.Argument(metavar="NAME", help="What the organisation calls it.")]
OfOrg = Annotated[str, typer.Option("--org", metavar="NAME", help="Organisation of the team.")]

LIMIT_COLUMNS: dict[str, show.Cell] = {
    "rpm": "requests_per_minute",
    "input tpm": "input_tokens_per_minute",
    "output tpm": "output_tokens_per_minute",
    "concurrency": "max_concurrency",
}


def add_to(app: typer.Typer) -> None:
    app.add_typer(orgs)
    app.add_typer(teams)


@orgs.command(
    name="create",
    epilog=examples(
        "llmhost orgs create acme",
        "llmhost orgs create acme --budget-usd 500 --budget-period month",
        "llmhost orgs create acme --rpm 6000 --json",
    ),
)
def create_org(
    name: OrgName,
    rpm: limits.Rpm = None,
    tpm: limits.Tpm = None,
    input_tpm: limits.InputTpm = None,
    output_tpm: limits.OutputTpm = None,
    concurrency: limits.Concurrency = None,
    budget_usd: BudgetUsd = None,
    budget_period: BudgetPeriod = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make an organisation. Its limits and its budget hold for all its keys together."""
    wanted: dict[str, Any] = {
        **limits.limits(rpm, tpm, input_tpm, output_tpm, concurrency),
        **first_budget(budget_usd, budget_period),
    }
    with open_admin(url, data_dir) as admin:
        row = admin.create_org(name, **wanted)
    _say(row, f"Organisation {row['name']} is {row['id']}", as_json=as_json)


@orgs.command(name="list", epilog=examples("llmhost orgs list", "llmhost orgs list --json"))
def list_orgs(url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List organisations."""
    with open_admin(url, data_dir) as admin:
        data = admin.orgs()
    columns: dict[str, show.Cell] = {
        "id": "id",
        "name": "name",
        **LIMIT_COLUMNS,
        "state": "state",
        "created": lambda row: show.date(row.get("created_at")),
    }
    show.rows(
        data,
        columns,
        as_json=as_json,
        empty="No organisations. `llmhost orgs create NAME` makes one.",
    )


@orgs.command(
    name="show", epilog=examples("llmhost orgs show acme", "llmhost orgs show acme --json")
)
def show_org(
    name: OrgName, url: Url = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Show one organisation with its limits."""
    with open_admin(url, data_dir) as admin:
        row = admin.org(name)
    show.facts(row, as_json=as_json)


@orgs.command(
    name="update",
    epilog=examples(
        "llmhost orgs update acme --rpm 6000 --tpm none", "llmhost orgs update acme --disable"
    ),
)
def update_org(
    name: OrgName,
    rpm: limits.NewRpm = None,
    tpm: limits.NewTpm = None,
    input_tpm: limits.NewInputTpm = None,
    output_tpm: limits.NewOutputTpm = None,
    concurrency: limits.NewConcurrency = None,
    enable: Annotated[
        bool | None,
        typer.Option("--enable/--disable", help="Serve its keys again, or refuse all of them."),
    ] = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Change an organisation's limits, disable it or enable it again."""
    changes: dict[str, Any] = {**limits.limit_changes(rpm, tpm, input_tpm, output_tpm, concurrency)}
    if enable is not None:
        changes["disabled"] = not enable
    limits.must_change(changes)
    with open_admin(url, data_dir) as admin:
        row = admin.update_org(name, **changes)
    _say(row, f"Organisation {row['name']} is changed and {row['state']}", as_json=as_json)


@teams.command(
    name="create",
    epilog=examples(
        "llmhost teams create search --org acme",
        "llmhost teams create search --org acme --budget-usd 100 --budget-period month",
        "llmhost teams create search --org acme --rpm 600 --concurrency 8 --json",
    ),
)
def create_team(
    name: TeamName,
    org: OfOrg,
    rpm: limits.Rpm = None,
    tpm: limits.Tpm = None,
    input_tpm: limits.InputTpm = None,
    output_tpm: limits.OutputTpm = None,
    concurrency: limits.Concurrency = None,
    budget_usd: BudgetUsd = None,
    budget_period: BudgetPeriod = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a team. Its limits and its budget hold for all its keys together."""
    wanted: dict[str, Any] = {
        **limits.limits(rpm, tpm, input_tpm, output_tpm, concurrency),
        **first_budget(budget_usd, budget_period),
    }
    with open_admin(url, data_dir) as admin:
        row = admin.create_team(org, name, **wanted)
    _say(row, f"Team {row['name']} of {row['org']} is {row['id']}", as_json=as_json)


@teams.command(
    name="list", epilog=examples("llmhost teams list", "llmhost teams list --org acme --json")
)
def list_teams(
    org: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only teams of this organisation.")
    ] = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List teams."""
    with open_admin(url, data_dir) as admin:
        data = admin.teams(org=org)
    columns: dict[str, show.Cell] = {
        "org": "org",
        "name": "name",
        **LIMIT_COLUMNS,
        "state": "state",
        "created": lambda row: show.date(row.get("created_at")),
    }
    show.rows(
        data,
        columns,
        as_json=as_json,
        empty="No teams. `llmhost teams create NAME --org ORG` makes one.",
    )


@teams.command(
    name="show",
    epilog=examples(
        "llmhost teams show search --org acme", "llmhost teams show search --org acme --json"
    ),
)
def show_team(
    name: TeamName, org: OfOrg, url: Url = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Show one team with its limits."""
    with open_admin(url, data_dir) as admin:
        row = admin.team(org, name)
    show.facts(row, as_json=as_json)


@teams.command(
    name="update",
    epilog=examples(
        "llmhost teams update search --org acme --rpm 1200",
        "llmhost teams update search --org acme --restore",
    ),
)
def update_team(
    name: TeamName,
    org: OfOrg,
    rpm: limits.NewRpm = None,
    tpm: limits.NewTpm = None,
    input_tpm: limits.NewInputTpm = None,
    output_tpm: limits.NewOutputTpm = None,
    concurrency: limits.NewConcurrency = None,
    restore: Annotated[
        bool, typer.Option("--restore", help="Serve an archived team's keys again.")
    ] = False,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Change a team's limits, or bring an archived one back."""
    changes: dict[str, Any] = {**limits.limit_changes(rpm, tpm, input_tpm, output_tpm, concurrency)}
    if restore:
        changes["archived"] = False
    limits.must_change(changes)
    with open_admin(url, data_dir) as admin:
        row = admin.update_team(org, name, **changes)
    _say(row, f"Team {row['name']} of {row['org']} is changed and {row['state']}", as_json=as_json)


@teams.command(
    name="archive",
    epilog=examples(
        "llmhost teams archive search --org acme", "llmhost teams archive search --org acme --json"
    ),
)
def archive_team(
    name: TeamName, org: OfOrg, url: Url = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Archive a team: its keys are refused, and what they used stays in the ledger."""
    with open_admin(url, data_dir) as admin:
        row = admin.archive_team(org, name)
    _say(row, f"Team {row['name']} of {row['org']} is archived", as_json=as_json)


def _say(row: show.Row, text: str, *, as_json: bool) -> None:
    if as_json:
        show.value(row)
    else:
        typer.echo(text)
