"""`llmhost keys` and `llmhost orgs`: who may call."""

import time
from typing import Annotated

import typer

from llmhost.cli import show
from llmhost.cli.admin import open_admin
from llmhost.cli.options import DataDir, Json, Url, examples

_CENTURY_DAYS = 36_500

keys = typer.Typer(
    name="keys",
    help="Make, list and revoke API keys.",
    no_args_is_help=True,
    epilog=examples("llmhost keys create --org acme", "llmhost keys list"),
)
orgs = typer.Typer(
    name="orgs",
    help="Make and list organisations, which own keys and pay bills.",
    no_args_is_help=True,
    epilog=examples("llmhost orgs create acme", "llmhost orgs list"),
)


def add_to(app: typer.Typer) -> None:
    app.add_typer(orgs)
    app.add_typer(keys)


@keys.command(
    name="create",
    epilog=examples(
        "llmhost keys create --org acme",
        "llmhost keys create --org acme --team search --rpm 600 --models tiny,qwen",
        "llmhost keys create --org acme --expires-days 30 --json",
    ),
)
def create_key(
    org: Annotated[str, typer.Option(metavar="NAME", help="Organisation that pays.")],
    team: Annotated[str | None, typer.Option(metavar="T", help="Team within it.")] = None,
    name: Annotated[
        str | None, typer.Option(metavar="N", help="What to call the key in lists.")
    ] = None,
    rpm: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Most requests per minute.")
    ] = None,
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
    if expires_days is not None and not 0 < expires_days <= _CENTURY_DAYS:
        raise typer.BadParameter(
            f"must be above 0 and at most {_CENTURY_DAYS}", param_hint="--expires-days"
        )
    with open_admin(url, data_dir) as admin:
        row = admin.create_key(
            org=org,
            team=team,
            name=name,
            requests_per_minute=rpm,
            models=_names(models),
            expires_at=None if expires_days is None else int(time.time() + expires_days * 86_400),
        )
    if as_json:
        show.value(row)
        return
    expiry = show.date(row.get("expires_at"))
    until = f", good until {expiry} UTC" if expiry else ""
    show.note(f"Key {row['id']} for {row['org']}{until}. Keep it: it is not shown again.")
    typer.echo(row["key"])


@keys.command(
    name="list", epilog=examples("llmhost keys list", "llmhost keys list --org acme --json")
)
def list_keys(
    org: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only keys of this organisation.")
    ] = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List API keys, without their secrets."""
    with open_admin(url, data_dir) as admin:
        data = admin.keys(org=org)
    columns: dict[str, show.Cell] = {
        "id": "id",
        "org": "org",
        "team": "team",
        "name": "name",
        "rpm": "requests_per_minute",
        "models": lambda row: row.get("models") or "all",
        "created": lambda row: show.date(row.get("created_at")),
        "expires": lambda row: show.date(row.get("expires_at")),
        "revoked": lambda row: show.date(row.get("revoked_at")),
    }
    show.rows(
        data, columns, as_json=as_json, empty="No keys. `llmhost keys create --org NAME` makes one."
    )


@keys.command(name="revoke", epilog=examples("llmhost keys revoke 3f9c0a1b2c4d"))
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `llmhost keys list` shows it.")],
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Revoke an API key for ever. What it has used stays in the ledger."""
    with open_admin(url, data_dir) as admin:
        row = admin.revoke_key(key_id)
    if as_json:
        show.value(row)
    else:
        typer.echo(f"Key {row['id']} of {row['org']} is revoked")


@orgs.command(
    name="create", epilog=examples("llmhost orgs create acme", "llmhost orgs create acme --json")
)
def create_org(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What keys and bills call it.")],
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make an organisation."""
    with open_admin(url, data_dir) as admin:
        row = admin.create_org(name)
    if as_json:
        show.value(row)
    else:
        typer.echo(f"Organisation {row['name']} is {row['id']}")


@orgs.command(name="list", epilog=examples("llmhost orgs list", "llmhost orgs list --json"))
def list_orgs(url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List organisations."""
    with open_admin(url, data_dir) as admin:
        data = admin.orgs()
    columns: dict[str, show.Cell] = {
        "id": "id",
        "name": "name",
        "created": lambda row: show.date(row.get("created_at")),
    }
    show.rows(
        data,
        columns,
        as_json=as_json,
        empty="No organisations. `llmhost orgs create NAME` makes one.",
    )


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise typer.BadParameter("names no model", param_hint="--models")
    return names
