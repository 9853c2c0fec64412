"""`llmhost adapters`: LoRA adapters of a running node."""

from pathlib import Path
from typing import Annotated

import typer

from llmhost.cli import show
from llmhost.cli.node import need_node
from llmhost.cli.options import DataDir, Json, Url, examples

adapters = typer.Typer(
    name="adapters",
    help="List, load and unload LoRA adapters.",
    no_args_is_help=True,
    epilog=examples("llmhost adapters list", "llmhost adapters load tiny:pirate"),
)

Name = Annotated[str, typer.Argument(metavar="MODEL:NAME", help="As requests name it.")]


def add_to(app: typer.Typer) -> None:
    app.add_typer(adapters)


@adapters.command(
    name="list", epilog=examples("llmhost adapters list", "llmhost adapters list --json")
)
def list_adapters(url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the adapters that requests can name. STATE is ready for those in memory; others load on first use."""
    from llmhost.cli.client import HttpAdmin

    with HttpAdmin(need_node(url, data_dir)) as admin:
        data = admin.adapters()
    columns: dict[str, show.Cell] = {
        "adapter": "adapter",
        "source": "source",
        "origin": "origin",
        "files": "files",
        "state": "state",
        "size": lambda row: show.memory(row.get("bytes") or None),
        "requests": "requests",
    }
    empty = "No adapters. Declare one under [models.NAME.adapters], or load one with --source."
    show.rows(data, columns, as_json=as_json, empty=empty)


@adapters.command(
    epilog=examples(
        "llmhost adapters load tiny:pirate",
        "llmhost adapters load tiny:pirate --source ./pirate-lora",
        "llmhost adapters load tiny:pirate --source hf:ORG/NAME --json",
    )
)
def load(
    name: Name,
    source: Annotated[
        str | None,
        typer.Option(metavar="S", help="A PEFT folder or hf:ORG/NAME, for one not declared."),
    ] = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Load an adapter now instead of on its first request, or add one. What is added is forgotten at a restart."""
    from llmhost.cli.client import HttpAdmin

    with HttpAdmin(need_node(url, data_dir)) as admin:
        row = admin.load_adapter(name, None if source is None else _from_here(source))
    if as_json:
        show.value(row)
        return
    typer.echo(f"{show.printable(row['adapter'])} is {row['state']}, {show.memory(row['bytes'])}")


@adapters.command(
    epilog=examples(
        "llmhost adapters unload tiny:pirate", "llmhost adapters unload tiny:pirate --json"
    )
)
def unload(name: Name, url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Let an adapter's running answers finish, then free its memory. One added by a load is forgotten."""
    from llmhost.cli.client import HttpAdmin

    with HttpAdmin(need_node(url, data_dir)) as admin:
        row = admin.unload_adapter(name)
    if as_json:
        show.value(row)
        return
    typer.echo(f"{show.printable(row['adapter'])} is {row['state']}")


def _from_here(source: str) -> str:
    """A folder as the node finds it, which may run elsewhere on this machine."""
    folder = Path(source).expanduser()
    return str(folder.absolute()) if folder.is_dir() else source
