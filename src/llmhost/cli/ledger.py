"""`llmhost ledger`: the proof, the accounts, and rating a period again."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from llmhost.cli import show
from llmhost.cli.admin import open_admin
from llmhost.cli.dates import moment
from llmhost.cli.options import DataDir, Json, Url, examples

ledger = typer.Typer(
    name="ledger",
    help="Check and export the append-only record of every charge.",
    no_args_is_help=True,
    epilog=examples(
        "llmhost ledger verify",
        "llmhost ledger export > ledger.jsonl",
        "llmhost ledger rerate --model tiny --since 2026-01-01 --price tiny/2",
    ),
)


def add_to(app: typer.Typer) -> None:
    app.add_typer(ledger)


@ledger.command(epilog=examples("llmhost ledger verify", "llmhost ledger verify --json"))
def verify(url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Check that no entry was changed, removed or added later, and that sums and true costs are what the entries say.

    Exits with 1 if anything is wrong.
    """
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


@ledger.command(epilog=examples("llmhost ledger check", "llmhost ledger check --rebuild"))
def check(
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Make the sums anew from the entries.", show_default=False),
    ] = False,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Compare the sums that reports and budgets read with the entries. Exits with 1 if they differ.

    A node does this by itself once a day. While sums are made anew no request is settled.
    """
    with open_admin(url, data_dir) as admin:
        row = admin.rebuild_sums() if rebuild else admin.check_sums()
    if as_json:
        show.value(row)
    elif row["ok"]:
        typer.echo("The sums are what the entries add up to.")
    else:
        wrong = ", ".join(f"{count} of {table}" for table, count in row["drift"].items() if count)
        show.note(
            f"Sums that are not what the entries add up to: {wrong}. --rebuild makes them anew."
        )
    if not row["ok"]:
        raise typer.Exit(1)


@ledger.command(epilog=examples("llmhost ledger accounts", "llmhost ledger accounts --json"))
def accounts(url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show what all accounts hold: debits less credits. Together it is always 0.

    An organisation's account is what it owes; it is negative after a payment in advance.
    """
    with open_admin(url, data_dir) as admin:
        rows = admin.accounts()
    if not as_json and rows:
        total = sum(row["balance_nano"] for row in rows)
        rows = [*rows, {"account": "sum", "balance_nano": total}]
    columns: dict[str, show.Cell] = {
        "account": "account",
        "debits": lambda row: show.dollars(row.get("debit_nano")),
        "credits": lambda row: show.dollars(row.get("credit_nano")),
        "balance": lambda row: show.dollars(row.get("balance_nano")),
    }
    show.rows(rows, columns, as_json=as_json, empty="Nothing was booked yet.")


def _amount(option: str, what: str) -> Any:
    return typer.Option(option, metavar="DOLLARS", help=what)


@ledger.command(
    epilog=examples(
        "llmhost ledger rerate --model tiny --since 2026-01-01 --until 2026-02-01 --price tiny/2",
        "llmhost ledger rerate --model tiny --since 7d --input 0.10 --output 0.40 --org acme --apply",
    )
)
def rerate(
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Model, of all versions or NAME@VERSION.")
    ],
    since: Annotated[
        str, typer.Option(metavar="DATE", help="From this date (UTC) on, or 24h, 7d, 4w ago.")
    ],
    until: Annotated[
        str | None, typer.Option(metavar="DATE", help="Up to, and without, this date; now.")
    ] = None,
    org: Annotated[
        str | None, typer.Option(metavar="NAME", help="This organisation's requests alone.")
    ] = None,
    was: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Those alone that were charged by this price."),
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="A version that `llmhost prices list` shows."),
    ] = None,
    input_price: Annotated[
        str | None, _amount("--input", "Or amounts: a million prompt tokens.")
    ] = None,
    output_price: Annotated[str | None, _amount("--output", "A million generated tokens.")] = None,
    cached_input: Annotated[
        str | None, _amount("--cached-input", "A million cached tokens; as --input.")
    ] = None,
    reasoning: Annotated[
        str | None, _amount("--reasoning", "A million tokens of thoughts; as --output.")
    ] = None,
    embedding: Annotated[
        str | None, _amount("--embedding", "A million tokens of embedded texts; as prompts.")
    ] = None,
    request: Annotated[str | None, _amount("--request", "Each request, beside its tokens.")] = None,
    rerate_id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Names it: applied once, it is done for good."),
    ] = None,
    apply: Annotated[
        bool,
        typer.Option("--apply/--dry-run", help="Make the entries, or say what would come of it."),
    ] = False,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Charge the requests of a period anew, by entries that make up the difference. No entry is changed.

    Each stands at the time of its request: usage, budgets and statements of that time change with it. Who had a price
    of its own is left out unless --org names it, and what a plugin quoted unless --was does.
    """
    now = datetime.now(UTC)
    amounts = {
        "input": input_price,
        "output": output_price,
        "cached_input": cached_input,
        "reasoning": reasoning,
        "embedding": embedding,
        "request": request,
    }
    said = {name: text for name, text in amounts.items() if text is not None}
    if (price is None) == (not said):
        raise typer.BadParameter("give it, or amounts such as --input", param_hint="--price")
    body = {
        "model": model,
        "since": moment(since, "--since", None, now),
        "until": moment(until, "--until", None, now),
        "org": org,
        "was": was,
        "price": price,
        **said,
        "apply": apply,
        "id": rerate_id,
    }
    with open_admin(url, data_dir) as admin:
        result = admin.rerate({name: value for name, value in body.items() if value is not None})
    if as_json:
        show.value(result)
        return
    columns: dict[str, show.Cell] = {
        "org": "org",
        "requests": "requests",
        "changed": "changed",
        "before": lambda row: show.dollars(row["before_nano"]),
        "after": lambda row: show.dollars(row["after_nano"]),
        "difference": lambda row: show.dollars(row["difference_nano"]),
    }
    show.rows(
        result["data"], columns, as_json=False, empty="No paid request of that model and time."
    )
    if apply:
        show.note(f"Applied as {result['id']}.")
    else:
        show.note("Nothing was changed. --apply makes the entries.")
