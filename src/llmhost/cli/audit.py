"""`llmhost audit`: who did what and what was screened, and the proof that nobody has changed it since."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from llmhost.cli import show
from llmhost.cli.admin import open_admin
from llmhost.cli.dates import Since, Until, moment
from llmhost.cli.options import DataDir, Json, Url, examples

audit = typer.Typer(
    name="audit",
    help="See who did what and what was screened, and check that nobody has changed the record.",
    no_args_is_help=True,
    epilog=examples("llmhost audit verify", "llmhost audit list --org acme --since 7d"),
)

Org = Annotated[str | None, typer.Option(metavar="ORG", help="Of this organisation only.")]
Kind = Annotated[
    str | None,
    typer.Option(metavar="KIND", help="One of screening, allowed, admin, policy, audit."),
]


def add_to(app: typer.Typer) -> None:
    app.add_typer(audit)


@audit.command(
    epilog=examples(
        "llmhost audit verify",
        "llmhost audit verify --json",
        "llmhost audit verify --head 120:9c56cc51b374c3ba189210d5b6d4bf57790d351c96c47c02190ecf1e430635ab",
    )
)
def verify(
    head: Annotated[
        str | None,
        typer.Option(metavar="N:MARK", help="A head that an earlier check gave, kept elsewhere."),
    ] = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Check that no row was changed, removed, moved or added by anybody but the node.

    Exits with 1 if anything is wrong, and names the first place.
    """
    with open_admin(url, data_dir) as admin:
        row = admin.verify_audit(head=head)
    if as_json:
        show.value(row)
    elif row["ok"]:
        typer.echo(
            f"The audit log is whole: {row['rows']} rows, {row['pruned']} pruned, head {row['head']}"
        )
    else:
        show.note(f"The audit log is damaged: {row['problem']}")
    if not row["ok"]:
        raise typer.Exit(1)


@audit.command(
    name="list",
    epilog=examples(
        "llmhost audit list",
        "llmhost audit list --org acme --kind screening --since 24h",
        "llmhost audit list --action create_key --json",
    ),
)
def list_rows(
    org: Org = None,
    kind: Kind = None,
    action: Annotated[
        str | None, typer.Option(metavar="NAME", help="Such as block, warn or create_key.")
    ] = None,
    actor: Annotated[
        str | None, typer.Option(metavar="WHO", help="A key's id, operator or node.")
    ] = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most rows to show.")] = 50,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List rows, the newest first."""
    asked = _asked(org=org, kind=kind, action=action, actor=actor) | span(since, until)
    with open_admin(url, data_dir) as admin:
        data = admin.audit_rows(limit=limit, **asked)
    columns: dict[str, show.Cell] = {
        "row": "id",
        "at": lambda row: show.date(row["at_ns"] / 1e9),
        "kind": "kind",
        "org": "org",
        "actor": "actor",
        "action": "action",
        "target": "target",
        "detail": lambda row: _detail(row["detail"]),
    }
    show.rows(data, columns, as_json=as_json, empty="Nothing was written down yet.")


@audit.command(epilog=examples("llmhost audit prompt 4711", "llmhost audit prompt 4711 --json"))
def prompt(
    row: Annotated[str, typer.Argument(metavar="ROW", help="As `llmhost audit list` has it.")],
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Print a prompt that a policy has kept. That you read it is written down."""
    with open_admin(url, data_dir) as admin:
        found = admin.audit_prompt(row)
    if as_json:
        show.value(found)
    else:
        typer.echo(found["text"])


@audit.command(
    epilog=examples(
        "llmhost audit export > audit.jsonl", "llmhost audit export --org acme --since 2026-01-01"
    )
)
def export(
    org: Org = None,
    kind: Kind = None,
    since: Since = None,
    until: Until = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The only form there is.", show_default=False)
    ] = True,
) -> None:
    """Print rows as JSON, one object a line, the oldest first."""
    asked = _asked(org=org, kind=kind) | span(since, until)
    with open_admin(url, data_dir) as admin:
        for row in admin.export_audit(**asked):
            typer.echo(json.dumps(row, ensure_ascii=False))


def _asked(**wanted: str | None) -> dict[str, str]:
    return {name: value for name, value in wanted.items() if value is not None}


def span(since: str | None, until: str | None) -> dict[str, str]:
    now = datetime.now(UTC)
    return _asked(
        since=moment(since, "--since", None, now), until=moment(until, "--until", None, now)
    )


def _detail(detail: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in detail.items() if name != "method"}
    text = json.dumps(shown, ensure_ascii=False, separators=(", ", ": ")).strip("{}")
    return text if len(text) <= 100 else f"{text[:99]}…"
