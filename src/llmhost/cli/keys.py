"""`llmhost keys`: who may call."""

import time
from typing import Annotated, Any, Literal

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

_CENTURY_DAYS = 36_500

keys = typer.Typer(
    name="keys",
    help="Make, list, change, rotate and revoke API keys.",
    no_args_is_help=True,
    epilog=examples("llmhost keys create --org acme", "llmhost keys list"),
)

KeyId = Annotated[
    str, typer.Argument(metavar="ID", help="As `llmhost keys list` shows it, or its beginning.")
]
Role = Literal["admin", "billing", "member", "inference", "reviewer"]
_ROLES = (
    "admin manages its organisation, billing sees its usage and ledger, member asks models and sees its own usage,"
    " inference asks models."
)


def add_to(app: typer.Typer) -> None:
    app.add_typer(keys)


@keys.command(
    name="create",
    epilog=examples(
        "llmhost keys create --org acme",
        "llmhost keys create --org acme --team search --rpm 600 --models tiny,qwen",
        "llmhost keys create --org acme --budget-usd 25 --budget-period month",
        "llmhost keys create --org acme --role billing --expires-days 30 --json",
    ),
)
def create_key(
    org: Annotated[str, typer.Option(metavar="NAME", help="Organisation that pays.")],
    team: Annotated[str | None, typer.Option(metavar="T", help="Team within it.")] = None,
    name: Annotated[
        str | None, typer.Option(metavar="N", help="What to call the key in lists.")
    ] = None,
    role: Annotated[Role | None, typer.Option(help=f"{_ROLES} [default: member]")] = None,
    rpm: limits.Rpm = None,
    tpm: limits.Tpm = None,
    input_tpm: limits.InputTpm = None,
    output_tpm: limits.OutputTpm = None,
    concurrency: limits.Concurrency = None,
    budget_usd: BudgetUsd = None,
    budget_period: BudgetPeriod = None,
    models: Annotated[
        str | None, typer.Option(metavar="A,B", help="The only models that it may use.")
    ] = None,
    expires_days: Annotated[
        float | None, typer.Option(metavar="D", help="Stop working after this many days.")
    ] = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make an API key. It is shown this once: the node keeps only a keyed hash of it.

    The key alone goes to standard output, so that KEY=$(llmhost keys create --org acme) works.
    """
    facts = {
        "org": org,
        "team": team,
        "name": name,
        "role": role,
        **limits.limits(rpm, tpm, input_tpm, output_tpm, concurrency),
        **first_budget(budget_usd, budget_period),
        "models": None if models is None else _names(models),
        "expires_at": None if expires_days is None else _after(expires_days),
    }
    with open_admin(url, data_dir) as admin:
        row = admin.create_key(**{fact: said for fact, said in facts.items() if said is not None})
    expiry = show.date(row.get("expires_at"))
    until = f", good until {expiry} UTC" if expiry else ""
    _show_secret(row, f"Key {row['id']} for {row['org']}{until}.", as_json=as_json)


@keys.command(
    name="list", epilog=examples("llmhost keys list", "llmhost keys list --org acme --json")
)
def list_keys(
    org: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only keys of this organisation.")
    ] = None,
    team: Annotated[str | None, typer.Option(metavar="T", help="Only keys of this team.")] = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List API keys, without their secrets."""
    with open_admin(url, data_dir) as admin:
        data = admin.keys(org=org, team=team)
    columns: dict[str, show.Cell] = {
        "id": "id",
        "org": "org",
        "team": "team",
        "name": "name",
        "role": "role",
        "rpm": "requests_per_minute",
        "models": lambda row: row.get("models") or "all",
        "state": "state",
        "created": lambda row: show.date(row.get("created_at")),
        "expires": lambda row: show.date(row.get("expires_at")),
        "revoked": lambda row: show.date(row.get("revoked_at")),
    }
    show.rows(
        data, columns, as_json=as_json, empty="No keys. `llmhost keys create --org NAME` makes one."
    )


@keys.command(
    name="show",
    epilog=examples("llmhost keys show 3f9c0a1b2c4d", "llmhost keys show 3f9c --json"),
)
def show_key(
    key_id: KeyId, url: Url = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Show one API key, without its secret."""
    with open_admin(url, data_dir) as admin:
        row = admin.key(key_id)
    show.facts(row, as_json=as_json)


@keys.command(
    name="update",
    epilog=examples(
        "llmhost keys update 3f9c0a1b2c4d --rpm 600 --name laptop",
        "llmhost keys update 3f9c --models all --expires-days none",
        "llmhost keys update 3f9c --disable",
    ),
)
def update_key(
    key_id: KeyId,
    name: Annotated[
        str | None, typer.Option(metavar="N", help="What to call the key in lists.")
    ] = None,
    role: Annotated[Role | None, typer.Option(help=_ROLES)] = None,
    rpm: limits.NewRpm = None,
    tpm: limits.NewTpm = None,
    input_tpm: limits.NewInputTpm = None,
    output_tpm: limits.NewOutputTpm = None,
    concurrency: limits.NewConcurrency = None,
    models: Annotated[
        str | None, typer.Option(metavar="A,B", help="The only models that it may use, or all.")
    ] = None,
    expires_days: Annotated[
        str | None,
        typer.Option(metavar="D", help="Stop working so many days from now, or none for never."),
    ] = None,
    enable: Annotated[
        bool | None,
        typer.Option("--enable/--disable", help="Serve it again, or refuse it until then."),
    ] = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Change a key's name, role, limits, models or expiry, disable it or enable it again."""
    changes: dict[str, Any] = {**limits.limit_changes(rpm, tpm, input_tpm, output_tpm, concurrency)}
    if name is not None:
        changes["name"] = name or None
    if role is not None:
        changes["role"] = role
    if models is not None:
        changes["models"] = None if models == "all" else _names(models)
    if expires_days is not None:
        changes["expires_at"] = _expiry(expires_days)
    if enable is not None:
        changes["disabled"] = not enable
    limits.must_change(changes)
    with open_admin(url, data_dir) as admin:
        row = admin.update_key(key_id, **changes)
    if as_json:
        show.value(row)
    else:
        typer.echo(f"Key {row['id']} of {row['org']} is changed and {row['state']}")


@keys.command(
    name="rotate",
    epilog=examples(
        "llmhost keys rotate 3f9c0a1b2c4d --overlap 24h",
        "llmhost keys rotate 3f9c --overlap 0 --json",
    ),
)
def rotate_key(
    key_id: KeyId,
    overlap: Annotated[
        str, typer.Option(metavar="TIME", help="How long the old secret still works; 0 for not.")
    ] = "24h",
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Give a key a new secret; id, settings and usage stay. It is shown this once.

    The new key alone goes to standard output. The old one goes on working until the overlap ends.
    """
    overlap_s = limits.seconds(overlap, "--overlap")
    with open_admin(url, data_dir) as admin:
        row = admin.rotate_key(key_id, overlap_s=overlap_s)
    old = f"the old one works for {overlap} more" if overlap_s else "the old one works no more"
    _show_secret(row, f"Key {row['id']} for {row['org']} is a new one, {old}.", as_json=as_json)


@keys.command(name="revoke", epilog=examples("llmhost keys revoke 3f9c0a1b2c4d"))
def revoke_key(
    key_id: KeyId, url: Url = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Revoke an API key for ever. What it has used stays in the ledger."""
    with open_admin(url, data_dir) as admin:
        row = admin.revoke_key(key_id)
    if as_json:
        show.value(row)
    else:
        typer.echo(f"Key {row['id']} of {row['org']} is revoked")


def _show_secret(row: show.Row, note: str, *, as_json: bool) -> None:
    if as_json:
        show.value(row)
        return
    show.note(f"{note} Keep it: it is not shown again.")
    typer.echo(row["key"])


def _after(days: float) -> int:
    if not 0 < days <= _CENTURY_DAYS:
        raise typer.BadParameter(
            f"must be above 0 and at most {_CENTURY_DAYS}", param_hint="--expires-days"
        )
    return int(time.time() + days * 86_400)


def _expiry(text: str) -> int | None:
    if text == limits.NONE:
        return None
    try:
        return _after(float(text))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is neither a number of days nor none", param_hint="--expires-days"
        ) from None


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise typer.BadParameter("names no model", param_hint="--models")
    return names
