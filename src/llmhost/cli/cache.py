"""`llmhost cache`: what the response cache holds and saves, what it has learnt, and how it is made to forget."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from llmhost.cli import show
from llmhost.cli.admin import open_admin
from llmhost.cli.node import need_node
from llmhost.cli.options import DataDir, Json, Url, examples

cache = typer.Typer(
    name="cache",
    help="Show the response cache, what it has learnt, and make it forget.",
    no_args_is_help=True,
    epilog=examples("llmhost cache show", "llmhost cache purge --org acme"),
)


def add_to(app: typer.Typer) -> None:
    app.add_typer(cache)


@cache.command(name="show", epilog=examples("llmhost cache show", "llmhost cache show --json"))
def show_cache(url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Say what is kept, and what that has saved since the node's start."""
    with open_admin(url, data_dir) as admin:
        report = admin.cache()
    if as_json:
        show.value(report)
        return
    total = report["total"]
    typer.echo(
        f"{report['memory_answers']} answers in memory, {show.memory(report['memory_bytes'])}\n"
        f"{report['disk_answers']} answers on disk, {show.memory(report['disk_bytes'])}\n"
        f"{total['hits']} hits, {total['joined']} joined, {total['misses']} misses:"
        f" {100 * total['hit_rate']:.1f}% of those who looked\n"
        f"{total['saved_tokens']} tokens and {total['saved_gpu_s']:.1f} s of devices saved,"
        f" ${total['saved_cost_usd']} of cost\n"
        f"{report['policies']} policies; {report['policies_created']} were made,"
        f" {report['policies_retired']} ended"
    )


@cache.command(epilog=examples("llmhost cache stats", "llmhost cache stats --json"))
def stats(url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List hits, misses and savings of each organisation and model, on a running node.

    `alike` are hits of questions that were only alike, `false` what checks found of them.
    """
    from llmhost.cli.client import HttpAdmin

    with HttpAdmin(need_node(url, data_dir)) as admin:
        rows = admin.cache_stats()
    columns: dict[str, show.Cell] = {
        "org": "org",
        "model": "model",
        "hits": "hits",
        "alike": "semantic",
        "false": _false_hits,
        "joined": "joined",
        "misses": "misses",
        "rate": lambda row: f"{100 * row['hit_rate']:.1f}%",
        "tokens": "saved_tokens",
        "saved": lambda row: f"${row['saved_cost_usd']}",
    }
    show.rows(rows, columns, as_json=as_json, empty="No request has met the cache yet.")


def _false_hits(row: Mapping[str, Any]) -> str:
    """Of the answers to alike questions that were checked."""
    if row["false_hit_rate"] is None:
        return ""
    stopped = ", stopped" if row["is_semantic_stopped"] else ""
    return f"{100 * row['false_hit_rate']:.1f}% of {row['semantic_checks']}{stopped}"


@cache.command(epilog=examples("llmhost cache policies", "llmhost cache policies --json"))
def policies(url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List what was learnt of kinds of requests that repeat, on a running node."""
    from llmhost.cli.client import HttpAdmin

    with HttpAdmin(need_node(url, data_dir)) as admin:
        rows = admin.cache_policies()
    columns: dict[str, show.Cell] = {
        "signature": "id",
        "org": "org",
        "model": "model",
        "form": "form",
        "ttl": lambda row: f"{row['ttl_s']:.0f} s",
        "priority": "priority",
        "repeats": lambda row: f"{100 * row['potential']:.0f}%",
        "of": "uses",
    }
    show.rows(rows, columns, as_json=as_json, empty="No policy was learnt yet.")


@cache.command(
    epilog=examples(
        "llmhost cache purge --org acme",
        "llmhost cache purge --model tiny --tag nightly",
        "llmhost cache purge --everything --json",
    )
)
def purge(
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Answers of this model, at any version.")
    ] = None,
    org: Annotated[
        str | None, typer.Option(metavar="NAME", help="Answers of this organisation.")
    ] = None,
    tag: Annotated[
        str | None, typer.Option(metavar="TAG", help="Answers kept with this tag.")
    ] = None,
    everything: Annotated[bool, typer.Option("--everything", help="All answers.")] = False,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Forget kept answers, in memory and on disk. Several options must all be met."""
    names = {"model": model, "org": org, "tag": tag}
    body = {name: value for name, value in names.items() if value is not None}
    with open_admin(url, data_dir) as admin:
        purged = admin.purge_cache(everything=everything, **body)
    if as_json:
        show.value(purged)
        return
    typer.echo(f"{purged['purged']} answers forgotten")
