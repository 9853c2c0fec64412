"""`llmhost prices`: what callers pay, for which organisation, from when."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from llmhost.cli import show
from llmhost.cli.admin import open_admin
from llmhost.cli.options import DataDir, Json, Url, examples

prices = typer.Typer(
    name="prices",
    help="Set and list prices, which are versions: none is ever changed.",
    no_args_is_help=True,
    epilog=examples(
        "llmhost prices set tiny --input 0.10 --output 0.40",
        "llmhost prices list --in-force",
    ),
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Name or alias of the model.")]
_AMOUNTS = ("input", "cached_input", "output", "reasoning", "embedding", "request")


def add_to(app: typer.Typer) -> None:
    app.add_typer(prices)


def _dollars(option: str, what: str) -> Any:
    return typer.Option(option, metavar="DOLLARS", help=what)


@prices.command(
    name="set",
    epilog=examples(
        "llmhost prices set tiny --input 0.10 --cached-input 0.01 --output 0.40",
        "llmhost prices set tiny --org acme --input 0.08 --output 0.30 --note 'contract 2026'",
        "llmhost prices set tiny --input 0.12 --output 0.45 --from 2026-12-01T00:00Z",
        "llmhost prices set tiny --org acme --withdraw",
    ),
)
def set_price(
    model: Model,
    input_price: Annotated[
        str | None, _dollars("--input", "A million prompt tokens; the amount may be 0.")
    ] = None,
    output_price: Annotated[str | None, _dollars("--output", "A million generated tokens.")] = None,
    cached_input: Annotated[
        str | None,
        _dollars("--cached-input", "A million prompt tokens that a cache saved; as --input."),
    ] = None,
    reasoning: Annotated[
        str | None, _dollars("--reasoning", "A million tokens of thoughts; as --output.")
    ] = None,
    embedding: Annotated[
        str | None, _dollars("--embedding", "A million tokens of embedded texts; as --input.")
    ] = None,
    request: Annotated[
        str | None, _dollars("--request", "Each request, beside its tokens.")
    ] = None,
    org: Annotated[
        str | None, typer.Option(metavar="NAME", help="For this organisation, not for everybody.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="DATE", help="Hold from then on (UTC), not now.")
    ] = None,
    withdraw: Annotated[
        bool,
        typer.Option(
            "--withdraw",
            help="End the price: an organisation pays the list price again, or the model is free.",
            show_default=False,
        ),
    ] = False,
    note: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why; shown to operators.")
    ] = None,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="Even if it changes by more than ten times.", show_default=False
        ),
    ] = False,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Set a price, in dollars per million tokens. The former one stays as a version, and what was billed stays.

    To undo, set the former price again. A price from models.toml holds until one is set here; then this one does,
    until the file says something new.
    """
    amounts = (input_price, cached_input, output_price, reasoning, embedding, request)
    facts: dict[str, Any] = {
        name: text for name, text in zip(_AMOUNTS, amounts, strict=True) if text is not None
    }
    if withdraw and facts:
        raise typer.BadParameter("leaves no amounts to set", param_hint="--withdraw")
    if not withdraw and (input_price is None or output_price is None):
        missing = "--input" if input_price is None else "--output"
        raise typer.BadParameter("is missing; 0 is an amount, too", param_hint=missing)
    said = {"org": org, "note": note, "effective_at": _moment(start)}
    facts |= {name: value for name, value in said.items() if value is not None}
    facts |= {"withdraw": True} if withdraw else {}
    facts |= {"confirm": True} if yes else {}
    with open_admin(url, data_dir) as admin:
        row = admin.set_price(model, **facts)
    if as_json:
        show.value(row)
        return
    whom = "everybody" if row["org"] is None else row["org"]
    since = "now" if row["in_force"] else show.date(row["effective_at"])
    what = "withdrawn" if row["withdrawn"] else f"{_price(row)} per million tokens"
    typer.echo(f"Price {row['version']} for {whom}: {what}, from {since}")


@prices.command(
    name="list",
    epilog=examples(
        "llmhost prices list",
        "llmhost prices list --in-force",
        "llmhost prices list --model tiny --org acme --json",
    ),
)
def list_prices(
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Only prices of this model.")
    ] = None,
    org: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this organisation's own.")
    ] = None,
    in_force: Annotated[
        bool, typer.Option("--in-force", help="Only those that hold now.", show_default=False)
    ] = False,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List versions of prices, oldest first: input, cached input and output."""
    with open_admin(url, data_dir) as admin:
        data = admin.prices(model=model, org=org, in_force=in_force)
    columns: dict[str, show.Cell] = {
        "version": "version",
        "org": "org",
        "price": lambda row: "withdrawn" if row.get("withdrawn") else _price(row),
        "origin": "origin",
        "from": lambda row: show.date(row.get("effective_at")),
        "in force": lambda row: "yes" if row.get("in_force") else "no",
        "note": "note",
    }
    show.rows(data, columns, as_json=as_json, empty="No prices: requests are metered and free.")


@prices.command(
    name="show",
    epilog=examples(
        "llmhost prices show tiny",
        "llmhost prices show tiny --org acme --json",
        "llmhost prices show tiny --version 2",
    ),
)
def show_price(
    model: Model,
    org: Annotated[
        str | None, typer.Option(metavar="NAME", help="What this organisation pays.")
    ] = None,
    version: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="This version of the model's prices.")
    ] = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show what is paid for a model now, or one version of its price."""
    if version is not None and org is not None:
        raise typer.BadParameter("names one price whoever pays it", param_hint="--version")
    with open_admin(url, data_dir) as admin:
        known = version is not None
        row = admin.price_version(f"{model}/{version}") if known else admin.price(model, org=org)
    show.facts(row, as_json=as_json)


def _price(row: show.Row) -> str | None:
    amounts = show.price(row)
    fee = row.get("request")
    return amounts if fee in (None, "0.00") else f"{amounts} + {fee} each"


def _moment(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a date such as 2026-12-01 or 2026-12-01T00:00Z", param_hint="--from"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
