"""`llmhost budgets` and `llmhost credits`: how much may be spent, and what was paid in."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import typer

from llmhost.cli import show
from llmhost.cli.admin import open_admin
from llmhost.cli.dates import as_utc
from llmhost.cli.limits import NONE, must_change
from llmhost.cli.options import DataDir, Json, Url, examples

budgets = typer.Typer(
    name="budgets",
    help="Say how much organisations, teams, keys and their runs may spend.",
    no_args_is_help=True,
    epilog=examples(
        "llmhost budgets create --org acme --usd 500 --period month", "llmhost budgets list"
    ),
)
credits_ = typer.Typer(
    name="credits",
    help="Pay into balances, and list what was paid in.",
    no_args_is_help=True,
    epilog=examples("llmhost credits add acme --usd 100", "llmhost credits list acme"),
)

BudgetId = Annotated[str, typer.Argument(metavar="ID", help="As `llmhost budgets list` shows it.")]
OrgName = Annotated[str, typer.Argument(metavar="ORG", help="Organisation that pays.")]
Period = Literal["day", "month", "total", "balance"]


def add_to(app: typer.Typer) -> None:
    app.add_typer(budgets)
    app.add_typer(credits_)


@budgets.command(
    name="create",
    epilog=examples(
        "llmhost budgets create --org acme --usd 500 --period month --timezone Europe/Berlin",
        "llmhost budgets create --org acme --team search --usd 20 --period day",
        "llmhost budgets create --key 3f9c0a1b2c4d --usd 2.50",
        "llmhost budgets create --org acme --per-run --usd 0.75",
        "llmhost budgets create --org acme --period balance",
    ),
)
def create_budget(
    org: Annotated[
        str | None, typer.Option(metavar="NAME", help="Organisation whose it is.")
    ] = None,
    team: Annotated[str | None, typer.Option(metavar="T", help="Of this team of it.")] = None,
    key: Annotated[
        str | None, typer.Option(metavar="ID", help="Of this key, named by its id's beginning.")
    ] = None,
    per_run: Annotated[
        bool,
        typer.Option(
            "--per-run", help="So much for each run (x-llmhost-run) of it.", show_default=False
        ),
    ] = False,
    usd: Annotated[
        str | None, typer.Option(metavar="DOLLARS", help="Most that may be spent, such as 12.50.")
    ] = None,
    period: Annotated[
        Period | None,
        typer.Option(
            help="Per what: total is in all, balance what is paid in with `llmhost credits add`."
            " [default: total]"
        ),
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(
            metavar="ZONE", help="Whose midnights days and months begin at. [default: UTC]"
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="For a total: from then on (UTC) nothing may be spent."),
    ] = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a budget. It is in force at once, and counts what was spent before in its day, month or ever."""
    if org is None and key is None:
        raise typer.BadParameter("or --key says whose it is", param_hint="--org")
    facts = {
        "org": org,
        "team": team,
        "key": key,
        "per_run": per_run or None,
        "usd": usd,
        "period": period,
        "timezone": timezone,
        "until": _time(until, "--until"),
    }
    with open_admin(url, data_dir) as admin:
        row = admin.create_budget(**{name: v for name, v in facts.items() if v is not None})
    _say(row, f"Budget {row['id']}: {_amount(row)} for {_whose(row)}", as_json=as_json)


@budgets.command(
    name="list",
    epilog=examples(
        "llmhost budgets list",
        "llmhost budgets list --org acme --json",
        "llmhost budgets list --key 3f9c --all",
    ),
)
def list_budgets(
    org: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only of this organisation.")
    ] = None,
    team: Annotated[str | None, typer.Option(metavar="T", help="Only of this team.")] = None,
    key: Annotated[str | None, typer.Option(metavar="ID", help="Only of this key.")] = None,
    ended: Annotated[
        bool, typer.Option("--all", help="Those that have ended, too.", show_default=False)
    ] = False,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List budgets, and how they stand."""
    with open_admin(url, data_dir) as admin:
        data = admin.budgets(org=org, team=team, key=key, active=not ended)
    columns: dict[str, show.Cell] = {
        "id": "id",
        "for": _whose,
        "budget": _amount,
        "spent": lambda row: _dollars(row.get("spent_usd")),
        "held": lambda row: _dollars(row.get("held_usd")),
        "remaining": lambda row: _dollars(row.get("remaining_usd")),
        "resets": lambda row: show.date(row.get("resets_at")),
        "state": "state",
    }
    show.rows(
        data,
        columns,
        as_json=as_json,
        empty="No budgets. `llmhost budgets create --org NAME --usd D` makes one.",
    )


@budgets.command(
    name="show",
    epilog=examples("llmhost budgets show bud_1f0c", "llmhost budgets show bud_1f0c --json"),
)
def show_budget(
    budget_id: BudgetId, url: Url = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Show one budget: how it stands, which runs used most, which requests hold most, and who changed it."""
    with open_admin(url, data_dir) as admin:
        row = admin.budget(budget_id)
    if as_json:
        show.value(row)
        return
    runs, holds, history = row.pop("runs"), row.pop("holds"), row.pop("history")
    show.facts({**row, "until": show.date(row["until"])}, as_json=False)
    if runs:
        columns: dict[str, show.Cell] = {
            "run": "run",
            "key": "key",
            "spent": lambda run: _dollars(run["spent_usd"]),
            "remaining": lambda run: _dollars(run["remaining_usd"]),
        }
        typer.echo(f"\n{show.table(runs, columns)}")
    if holds:
        requests: dict[str, show.Cell] = {
            "request": "request_id",
            "key": "key",
            "run": "run",
            "held": lambda hold: _dollars(hold["held_usd"]),
            "since": lambda hold: show.date(hold["since"]),
        }
        typer.echo(f"\n{show.table(holds, requests)}")
    changes: dict[str, show.Cell] = {
        "at": lambda change: show.date(change["at"]),
        "what": "what",
        "by": "by",
        "amount": lambda change: _dollars(change["usd"]),
    }
    typer.echo(f"\n{show.table(history, changes)}")


@budgets.command(
    name="update",
    epilog=examples(
        "llmhost budgets update bud_1f0c --usd 750",
        "llmhost budgets update bud_1f0c --until none",
    ),
)
def update_budget(
    budget_id: BudgetId,
    usd: Annotated[
        str | None, typer.Option(metavar="DOLLARS", help="Most that may be spent from now on.")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Nothing may be spent from then on (UTC), or none."),
    ] = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Change a budget's amount or end date, from now on. What is held already stays held."""
    changes: dict[str, Any] = {}
    if usd is not None:
        changes["usd"] = usd
    if until is not None:
        changes["until"] = None if until == NONE else _time(until, "--until")
    must_change(changes)
    with open_admin(url, data_dir) as admin:
        row = admin.update_budget(budget_id, **changes)
    _say(row, f"Budget {row['id']} is {_amount(row)} for {_whose(row)} now", as_json=as_json)


@budgets.command(name="end", epilog=examples("llmhost budgets end bud_1f0c"))
def end_budget(
    budget_id: BudgetId, url: Url = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """End a budget for ever: it limits nobody any more."""
    with open_admin(url, data_dir) as admin:
        row = admin.end_budget(budget_id)
    _say(row, f"Budget {row['id']} for {_whose(row)} has ended", as_json=as_json)


@credits_.command(
    name="add",
    epilog=examples(
        "llmhost credits add acme --usd 100 --reference invoice-2026-17",
        "llmhost credits add acme --usd 25 --grant --expires 2026-12-31",
    ),
)
def add_credit(
    org: OrgName,
    usd: Annotated[str, typer.Option(metavar="DOLLARS", help="How much, such as 12.50.")],
    grant: Annotated[
        bool,
        typer.Option("--grant", help="Nobody paid for it: goodwill, a trial.", show_default=False),
    ] = False,
    expires: Annotated[
        str | None, typer.Option(metavar="DATE", help="What is left of it then (UTC) is gone.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Of the payment: the same one is booked once."),
    ] = None,
    note: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why; shown to operators.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Into this balance, not the organisation's own."),
    ] = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Pay into a balance. Give a reference, and it is safe to repeat."""
    facts = {
        "usd": usd,
        "kind": "grant" if grant else None,
        "expires_at": _time(expires, "--expires"),
        "reference": reference,
        "note": note,
        "budget": budget,
    }
    with open_admin(url, data_dir) as admin:
        row = admin.add_credit(org, **{name: v for name, v in facts.items() if v is not None})
    ends = show.date(row.get("expires_at"))
    until = f", until {ends} UTC" if ends else ""
    text = f"Credit {row['id']} of ${row['usd']} for {row['org']}{until} ({row['reference']})"
    _say(row, text, as_json=as_json)


@credits_.command(
    name="list",
    epilog=examples("llmhost credits list acme", "llmhost credits list acme --json"),
)
def list_credits(
    org: OrgName, url: Url = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """List what was paid into an organisation's balances, and what is left of it."""
    with open_admin(url, data_dir) as admin:
        data = admin.credits(org)
    columns: dict[str, show.Cell] = {
        "id": "id",
        "kind": "kind",
        "amount": lambda row: _dollars(row.get("usd")),
        "left": lambda row: _dollars(row.get("left_usd")),
        "reference": "reference",
        "added": lambda row: show.date(row.get("created_at")),
        "expires": lambda row: show.date(row.get("expires_at")),
        "note": "note",
    }
    show.rows(
        data,
        columns,
        as_json=as_json,
        empty=f"No credits. `llmhost credits add {org} --usd D` pays in.",
    )


def _whose(row: show.Row) -> str:
    """`acme`, `team acme/search`, `each run of key 3f9c`."""
    if row.get("key"):
        whose = f"key {row['key']}"
    elif row.get("team"):
        whose = f"team {row['org']}/{row['team']}"
    else:
        whose = str(row.get("org"))
    return f"each run of {whose}" if row.get("per_run") else whose


def _amount(row: show.Row) -> str:
    """`$500.00 a month`."""
    if row.get("period") == "balance":
        return f"${row.get('usd')} paid in"
    per = {"day": "a day", "month": "a month"}.get(str(row.get("period")), "in all")
    return f"${row.get('usd')} {per}"


def _dollars(usd: str | None) -> str | None:
    return None if usd is None else f"${usd}"


def _time(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    try:
        return int(as_utc(text).astimezone(UTC).timestamp())
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is not a date such as {datetime.now(UTC).year + 1}-01-31", param_hint=option
        ) from None


def _say(row: show.Row, text: str, *, as_json: bool) -> None:
    if as_json:
        show.value(row)
    else:
        typer.echo(text)
