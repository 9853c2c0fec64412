"""`llmhost pull`: a model's files, fetched ahead of its first load. The node may run or not: both share one folder."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmhost.cli import show
from llmhost.cli.node import answers, load_settings, read_server_file
from llmhost.cli.options import DataDir, Json, SettingsFile, examples
from llmhost.core.errors import LlmhostError

if TYPE_CHECKING:
    from llmhost.deploy.transfer import Progress, Report

INTERRUPTED = 130


class NothingToPull(LlmhostError):
    """What was named can't be fetched from a hub."""


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "llmhost pull qwen",
            "llmhost pull qwen:support",
            "llmhost pull hf:Qwen/Qwen3-0.6B",
            "llmhost pull hf:Qwen/Qwen3-0.6B-GGUF:Q8_0",
            "llmhost pull hf:Qwen/Qwen3-0.6B --revision main --json",
        )
    )(pull)


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME|hf:ORG/NAME",
            help="Model of the settings, its adapter as MODEL:NAME, or a repository.",
        ),
    ],
    revision: Annotated[
        str | None,
        typer.Option(metavar="R", help="Branch, tag or commit; as in hf:ORG/NAME@R."),
    ] = None,
    models: SettingsFile = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Fetch a model's files into the data dir, and check every one against the hub's hash.

    What is here and right is not fetched again. A pull that was cut off goes on where it stopped. HF_TOKEN opens gated
    and private repositories; HF_ENDPOINT names a mirror. A running node serves newly pulled files of a model that it
    has loaded after `llmhost unload` or a restart.
    """
    folder = data_dir or load_settings(models).data_dir
    source = source_of(model, models, folder)
    if not source.startswith("hf:"):
        _tell_local(source, folder / "models", as_json)
        return
    from llmhost.config.sources import is_hub_source, parse_hub_source

    wanted = parse_hub_source(source)
    if revision is not None:
        wanted = wanted._replace(revision=revision)
    if not is_hub_source(f"hf:{wanted}"):
        raise NothingToPull(
            f"'hf:{wanted}' is not the name of a repository: it is written hf:ORG/NAME, hf:ORG/NAME@REVISION or,"
            " with one of its GGUF files, hf:ORG/NAME:Q4_K_M."
        )
    _fetch(wanted, folder, as_json)


def _fetch(wanted: Any, folder: Path, as_json: bool) -> None:
    from llmhost.deploy.fetch import fetch
    from llmhost.storage.node import DataDir as Place

    started_s = time.monotonic()
    try:
        with _bar(f"hf:{wanted}", is_shown=sys.stderr.isatty() and not as_json) as report:
            fetched = fetch(wanted, Place(folder).path / "models", report)
    except KeyboardInterrupt:
        show.note("Stopped. What has arrived is kept: the same command goes on from there.")
        raise typer.Exit(INTERRUPTED) from None
    took_s = time.monotonic() - started_s
    row = {
        "source": f"hf:{wanted}",
        "revision": wanted.revision,
        "commit": fetched.commit,
        "folder": str(fetched.folder),
        "files": fetched.files,
        "bytes": fetched.total_bytes,
        "fetched_bytes": fetched.arrived_bytes,
        "took_s": round(took_s, 3),
    }
    if as_json:
        show.value(row)
        return
    how = f"{show.memory(fetched.arrived_bytes)} fetched" if fetched.arrived_bytes else "all here"
    typer.echo(
        f"{row['source']} is here: {fetched.files} files, {show.memory(fetched.total_bytes)}"
        f" ({how}, checked in {took_s:.1f} s)"
    )
    typer.echo(str(fetched.folder))


def _tell_local(source: str, models_dir: Path, as_json: bool) -> None:
    """A built-in model, a folder or a file: it is here, or made here, or nowhere."""
    from llmhost.deploy.sources import find_files

    folder = find_files(source, models_dir)
    if as_json:
        show.value({"source": source, "folder": str(folder), "fetched_bytes": 0})
    else:
        typer.echo(f"{source} needs no fetching: its files are in {folder}")


def source_of(model: str, models: Path | None, data_dir: Path) -> str:
    """What a name stands for: in the running node, or else in the settings."""
    if model.startswith("hf:"):
        return model
    known = [*(_of_node(data_dir) if models is None else ()), *_of_settings(models)]
    if (adapter := _adapter_source(model, known)) is not None:
        return adapter
    for row in known:
        if model == row["name"] or model in row["aliases"]:
            if row["engine"] == "fake" or not row["source"]:
                raise NothingToPull(
                    f"The model {model!r} has the engine {row['engine']!r}: it has no files."
                )
            return str(row["source"])
    names = ", ".join(dict.fromkeys(row["name"] for row in known))
    hub = f" On Hugging Face's hub it is written 'hf:{model}'." if "/" in model else ""
    raise NothingToPull(f"There is no model {model!r} in the settings; there is: {names}.{hub}")


def _adapter_source(model: str, known: list[dict[str, Any]]) -> str | None:
    """Of a LoRA adapter that is named as MODEL:ADAPTER."""
    base, _, adapter = model.rpartition(":")
    for row in known:
        if base and (base == row["name"] or base in row["aliases"]) and adapter in row["adapters"]:
            return str(row["adapters"][adapter])
    return None


def _of_node(data_dir: Path) -> list[dict[str, Any]]:
    node = read_server_file(data_dir)
    if node is None or not answers(node.url):
        return []
    from llmhost.cli.client import HttpAdmin

    with HttpAdmin(node) as admin:
        return [{"adapters": {}, **row} for row in admin.models()]


def _of_settings(models: Path | None) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "aliases": spec.aliases,
            "engine": spec.engine,
            "source": spec.source,
            "adapters": spec.adapters,
        }
        for name, spec in load_settings(models).settings.models.items()
    ]


@contextmanager
def _bar(title: str, *, is_shown: bool) -> "Iterator[Report]":
    """A bar on stderr with bytes, speed and what is left; nothing in a pipe."""
    if not is_shown:
        yield lambda progress: None
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.DownloadColumn(binary_units=True),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"asking for {title}", total=None)

        def report(progress: "Progress") -> None:
            what = "another process fetches" if progress.is_waiting else "fetching"
            bar.update(
                task,
                description=f"{what} {title}",
                total=progress.total_bytes,
                completed=progress.done_bytes,
            )

        yield report
