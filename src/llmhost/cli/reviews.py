"""`llmhost reviews`: texts that wait for a human."""

from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

from llmhost.cli import show
from llmhost.cli.admin import open_admin
from llmhost.cli.dates import Since, moment
from llmhost.cli.options import DataDir, Json, Url, examples

reviews = typer.Typer(
    name="reviews",
    help="Decide on texts that policies leave to humans.",
    no_args_is_help=True,
    epilog=examples(
        "llmhost reviews list",
        "llmhost reviews claim",
        'llmhost reviews decide review_1f0c approve --note "a test card"',
    ),
)

ReviewId = Annotated[str, typer.Argument(metavar="ID", help="As `llmhost reviews list` shows it.")]
Org = Annotated[str | None, typer.Option("--org", metavar="ORG", help="Of this organisation only.")]
Note = Annotated[str | None, typer.Option(metavar="TEXT", help="Why, for its history.")]
State = Literal["pending", "open", "claimed", "escalated", "approved", "rejected", "expired", "all"]


def add_to(app: typer.Typer) -> None:
    app.add_typer(reviews)


@reviews.command(
    name="list",
    epilog=examples("llmhost reviews list", "llmhost reviews list --org acme --state all --json"),
)
def list_reviews(
    org: Org = None,
    state: Annotated[
        State, typer.Option(help="In this state; pending is open, claimed and escalated.")
    ] = "pending",
    category: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of this category only.")
    ] = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List texts that wait, the oldest first."""
    with open_admin(url, data_dir) as admin:
        data = admin.reviews(org=org, state=state, category=category)
    columns: dict[str, show.Cell] = {
        "review": "id",
        "org": "org",
        "state": "state",
        "mode": "mode",
        "category": "category",
        "rule": "rule",
        "holder": "holder",
        "due": lambda row: show.date(row["due_at"]),
    }
    show.rows(data, columns, as_json=as_json, empty="Nothing waits for a reviewer.")


@reviews.command(
    name="show",
    epilog=examples(
        "llmhost reviews show review_1f0c", "llmhost reviews show review_1f0c --original --json"
    ),
)
def show_review(
    review: ReviewId,
    original: Annotated[
        bool,
        typer.Option(
            "--original",
            help="Show the text as it came, too; who reads it is written down.",
            show_default=False,
        ),
    ] = False,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show one review: its redacted text, its state and its history."""
    with open_admin(url, data_dir) as admin:
        found = admin.review(review)
        if original:
            found = {**found, "original": admin.review_original(review)["text"]}
    if as_json:
        show.value(found)
        return
    _say(found)
    for event in found["history"]:
        note = f": {show.printable(event['note'])}" if event["note"] else ""
        typer.echo(f"  {show.date(event['at'])}  {event['event']} by {event['who']}{note}")
    text = found.get("original", found["text"])
    typer.echo("  (the text has been erased)" if text is None else show.printable(text))


@reviews.command(
    name="claim",
    epilog=examples("llmhost reviews claim", "llmhost reviews claim review_1f0c --json"),
)
def claim_review(
    review: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="The one that is due first when absent."),
    ] = None,
    org: Org = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Claim a review, which keeps others away for a while."""
    with open_admin(url, data_dir) as admin:
        _answer(admin.claim_review(review, org=org), as_json=as_json)


@reviews.command(
    name="release",
    epilog=examples(
        "llmhost reviews release review_1f0c", "llmhost reviews release review_1f0c --json"
    ),
)
def release_review(
    review: ReviewId, url: Url = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Give a claim back."""
    with open_admin(url, data_dir) as admin:
        _answer(admin.release_review(review), as_json=as_json)


@reviews.command(
    name="decide",
    epilog=examples(
        "llmhost reviews decide review_1f0c approve",
        'llmhost reviews decide review_1f0c reject --note "somebody\'s address" --json',
    ),
)
def decide_review(
    review: ReviewId,
    decision: Annotated[
        Literal["approve", "reject"], typer.Argument(metavar="DECISION", help="approve or reject.")
    ],
    note: Note = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Approve a text or reject it."""
    with open_admin(url, data_dir) as admin:
        _answer(admin.decide_review(review, decision=decision, note=note), as_json=as_json)


@reviews.command(
    name="escalate",
    epilog=examples(
        "llmhost reviews escalate review_1f0c",
        'llmhost reviews escalate review_1f0c --note "ask legal" --json',
    ),
)
def escalate_review(
    review: ReviewId,
    note: Note = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Leave a review to the operator or an admin of the organisation."""
    with open_admin(url, data_dir) as admin:
        _answer(admin.escalate_review(review, note=note), as_json=as_json)


@reviews.command(
    epilog=examples("llmhost reviews webhook", "llmhost reviews webhook --json"),
)
def webhook(url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show where events are posted to, and the secret to check their signatures with."""
    with open_admin(url, data_dir) as admin:
        found = admin.review_webhook()
    if as_json:
        show.value(found)
        return
    typer.echo(f"url     {found['url'] or '- ([reviews] webhook)'}")
    typer.echo(f"secret  {found['secret']}")


@reviews.command(
    name="stats",
    epilog=examples("llmhost reviews stats", "llmhost reviews stats --org acme --since 4w --json"),
)
def review_stats(
    org: Org = None,
    since: Since = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show how often rules were right, and the thresholds that decisions speak for."""
    at = moment(since, "--since", None, datetime.now(UTC))
    with open_admin(url, data_dir) as admin:
        found = admin.review_stats(org=org, since=at)
    if as_json:
        show.value(found)
        return
    since_date = show.date(found["since_at"])
    typer.echo(f"{found['rejected']} rejected, {found['approved']} approved since {since_date}")
    if (pair := found["agreement"])["texts"]:
        beyond = "" if pair["kappa"] is None else f", kappa {pair['kappa']:.2f}"
        typer.echo(
            f"Two reviewers agreed on {pair['agreed']} of {pair['texts']} texts"
            f" ({pair['share']:.0%}{beyond})"
        )
    if not found["rules"]:
        return
    columns: dict[str, show.Cell] = {
        "rule": "rule",
        "category": "category",
        "rejected": "rejected",
        "approved": "approved",
        "precision": "precision",
        "at least": "precision_low",
    }
    show.rows(found["rules"], columns, as_json=False, empty="")
    for row in found["thresholds"]:
        typer.echo(f"{show.printable(row['category'])}: {_proposed(row)}")


def _proposed(row: show.Row) -> str:
    if row["threshold"] is None:
        return f"no threshold is proposed ({row['decisions']} decisions)"
    return (
        f"a threshold of {row['threshold']:g} would be right in {row['precision']:.0%}, and find"
        f" {row['kept']} of {row['rejected']} that were rejected"
    )


def _answer(row: show.Row, *, as_json: bool) -> None:
    if as_json:
        show.value(dict(row))
    else:
        _say(row)


def _say(row: show.Row) -> None:
    held = f", claimed by {row['holder']}" if row["holder"] else ""
    typer.echo(
        f"{row['id']} of {show.printable(row['org'])} is {row['state']}{held}:"
        f" {show.printable(row['category'])} by {show.printable(row['rule'])}"
    )
