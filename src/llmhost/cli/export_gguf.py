"""`llmhost export-gguf`: a checkpoint with safetensors, written as a GGUF file. Needs no node."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmhost.cli import show
from llmhost.cli.node import load_settings
from llmhost.cli.options import DataDir, Json, SettingsFile, examples
from llmhost.cli.pull import INTERRUPTED, source_of
from llmhost.core.errors import LlmhostError

if TYPE_CHECKING:
    from llmhost.engines.llama.export import Report


class CannotExport(LlmhostError):
    """What was asked for can't be written."""


def add_to(app: typer.Typer) -> None:
    app.command(
        name="export-gguf",
        epilog=examples(
            "llmhost export-gguf ./my-finetune my-finetune.gguf",
            "llmhost export-gguf ./my-finetune my-finetune-Q4_K_M.gguf --type q4_k_m",
            "llmhost export-gguf builtin:tiny tiny.gguf --type f32 --json",
        ),
    )(export_gguf)


def export_gguf(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FOLDER", help="A folder with safetensors, a source, or a model's name."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    kind: Annotated[
        str,
        typer.Option(
            "--type", metavar="TYPE", help="How numbers are stored: f32, bf16, q4_k_m ..."
        ),
    ] = "f16",
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is there.", show_default=False)
    ] = False,
    models: SettingsFile = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint as a GGUF file, with its tokenizer and chat template.

    For models of Llama, Mistral, Qwen2 and Qwen3. Types: f32, f16, bf16, and in fewer bits q8_0, q6_k, q5_k_m, q5_k_s,
    q5_1, q5_0, q4_k_m, q4_k_s, q4_1, q4_0, iq4_xs, iq4_nl, q3_k_l, q3_k_m, q3_k_s and q2_k. The file appears when it is
    whole; for those in fewer bits there must be room beside it for one in the checkpoint's own precision. Needs the
    extra `gguf`.
    """
    from llmhost.engines.llama.export import TYPES, export

    if kind.lower() not in TYPES:
        raise CannotExport(f"There is no type {kind!r}; there is: {', '.join(TYPES)}.")
    if out.is_dir():
        raise CannotExport(
            f"{out} is a folder. Name the file to write, such as {out / 'model.gguf'}."
        )
    if out.exists() and not force:
        raise CannotExport(f"{out} is there already. --force writes over it.")
    folder = _folder(model, models, data_dir)
    started_s = time.monotonic()
    try:
        with _bar(is_shown=sys.stderr.isatty() and not as_json) as report:
            done = export(folder, out, kind.lower(), report)
    except KeyboardInterrupt:
        show.note("Stopped. Nothing is left of it.")
        raise typer.Exit(INTERRUPTED) from None
    row = {
        "file": str(done.path),
        "architecture": done.architecture,
        "type": done.type,
        "tensors": done.tensors,
        "bytes": done.size_bytes,
        "took_s": round(time.monotonic() - started_s, 3),
    }
    if as_json:
        show.value(row)
    else:
        size = show.memory(done.size_bytes)
        typer.echo(f"{done.path} is written: {done.architecture}, {done.type}, {size}")


def _folder(model: str, models: Path | None, data_dir: Path | None) -> Path:
    """Where the checkpoint is. A hub's must have been fetched."""
    from llmhost.deploy.sources import find_local

    place = data_dir or load_settings(models).data_dir
    is_source = model.startswith(("hf:", "builtin:")) or Path(model).expanduser().exists()
    source = model if is_source else source_of(model, models, place)
    folder = find_local(source, place / "models")
    if folder is None:
        raise CannotExport(f"{source} is not here yet: `llmhost pull {model}` fetches it.")
    if folder.is_file():
        raise CannotExport(f"{folder} is a file. A checkpoint is a folder with safetensors.")
    return folder


@contextmanager
def _bar(*, is_shown: bool) -> "Iterator[Report]":
    """A bar on stderr for each thing that is done; nothing in a pipe."""
    if not is_shown:
        yield lambda what, done, total: None
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report
