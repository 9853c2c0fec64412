"""`llmhost safety policies`: what happens to what is found in an organisation's texts."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from llmhost.cli import show
from llmhost.cli.admin import open_admin
from llmhost.cli.dates import Since, Until
from llmhost.cli.options import DataDir, Json, Url, examples

safety = typer.Typer(
    name="safety",
    help="Say what may pass in prompts and answers.",
    no_args_is_help=True,
    epilog=examples("llmhost safety policies list acme"),
)
policies = typer.Typer(
    name="policies",
    help="Make versions of an organisation's policy, put them in force and back, and try them out.",
    no_args_is_help=True,
    epilog=examples(
        "llmhost safety policies set acme policy.json", "llmhost safety policies activate acme 1"
    ),
)
safety.add_typer(policies)

Org = Annotated[str, typer.Argument(metavar="ORG", help="Organisation whose policy it is.")]
PolicyFile = Annotated[
    str, typer.Argument(metavar="FILE", help="The policy as JSON; - reads it from stdin.")
]


def add_to(app: typer.Typer) -> None:
    app.add_typer(safety)


@policies.command(
    name="list",
    epilog=examples(
        "llmhost safety policies list acme", "llmhost safety policies list acme --json"
    ),
)
def list_policies(
    org: Org, url: Url = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """List an organisation's versions, the oldest first."""
    with open_admin(url, data_dir) as admin:
        data = admin.policies(org)
    columns: dict[str, show.Cell] = {
        "policy": "id",
        "in force": lambda row: "yes" if row["active"] else "no",
        "made": lambda row: show.date(row["created_at"]),
        "by": "made_by",
        "note": "note",
    }
    empty = f"{org} has no policy of its own; the node's own holds for it."
    show.rows(data, columns, as_json=as_json, empty=empty)


@policies.command(
    name="show",
    epilog=examples("llmhost safety policies show acme", "llmhost safety policies show acme 2"),
)
def show_policy(
    org: Org,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="Its number; the one in force when absent.")
    ] = "active",
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Print one version's policy as JSON, as `set` takes it; with --json who made it and when, too."""
    with open_admin(url, data_dir) as admin:
        row = admin.policy(org, version)
    show.value(row if as_json else row["policy"])


@policies.command(
    name="set",
    epilog=examples(
        "llmhost safety policies set acme policy.json",
        "llmhost safety policies set acme policy.json --no-activate --note 'after the audit'",
    ),
)
def set_policy(
    org: Org,
    file: PolicyFile,
    note: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why; shown with the version.")
    ] = None,
    activate: Annotated[
        bool, typer.Option("--activate/--no-activate", help="Put it in force at once.")
    ] = True,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a new version of an organisation's policy. Versions never change."""
    body = {"policy": _read(file), "note": note, "activate": activate}
    with open_admin(url, data_dir) as admin:
        row = admin.create_policy(org, body)
    if as_json:
        show.value(row)
    else:
        typer.echo(f"Policy {row['id']} is made{' and in force' if row['active'] else ''}")


@policies.command(
    epilog=examples(
        "llmhost safety policies activate acme 1", "llmhost safety policies activate acme default"
    )
)
def activate(
    org: Org,
    version: Annotated[
        str,
        typer.Argument(metavar="VERSION", help="Its number, or default: the node's own policy."),
    ],
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Put a version in force, an older one too. Requests that come from then on meet it."""
    with open_admin(url, data_dir) as admin:
        row = admin.activate_policy(org, version)
    if as_json:
        show.value(row)
    else:
        typer.echo(f"Policy {row['id']} is in force for {org}")


@policies.command(
    name="dry-run",
    epilog=examples(
        "llmhost safety policies dry-run acme --version 2 --since 7d",
        "llmhost safety policies dry-run acme --file policy.json --json",
    ),
)
def try_policy(
    org: Org,
    version: Annotated[
        int | None, typer.Option(metavar="N", help="A version that there is.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Or a policy as JSON; - reads it from stdin."),
    ] = None,
    since: Since = None,
    until: Until = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Say what a policy would have done with what was screened, by category and score. No text is kept or needed."""
    from llmhost.cli.audit import span

    if (version is None) == (file is None):
        raise typer.BadParameter("give it, or --file", param_hint="--version")
    body: dict[str, Any] = dict(span(since, until))
    body |= {"version": version} if file is None else {"policy": _read(file)}
    with open_admin(url, data_dir) as admin:
        row = admin.try_policy(org, body)
    if as_json:
        show.value(row)
        return
    typer.echo(f"{row['changed']} of {row['screenings']} screenings would have ended otherwise.")
    if row["moves"]:
        columns: dict[str, show.Cell] = {"before": "before", "after": "after", "texts": "count"}
        typer.echo(f"\n{show.table(row['moves'], columns)}")


def _read(file: str) -> Any:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        return json.loads(text)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{file} is not a policy as JSON: {error}") from None
