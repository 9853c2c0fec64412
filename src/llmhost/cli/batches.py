"""`llmhost batches` and `llmhost files`: many requests in one file, and the files that they are in."""

import sys
from contextlib import closing
from pathlib import Path
from typing import IO, Annotated, Literal

import typer

from llmhost.cli import show
from llmhost.cli.admin import open_admin
from llmhost.cli.chat import connect
from llmhost.cli.options import DataDir, Json, Url, examples
from llmhost.core.errors import ConfigError

batches = typer.Typer(
    name="batches",
    help="Run the requests of a file, and see how far they are.",
    no_args_is_help=True,
    epilog=examples("llmhost batches create requests.jsonl", "llmhost batches list"),
)
files = typer.Typer(
    name="files",
    help="Upload, list, fetch and delete callers' files.",
    no_args_is_help=True,
    epilog=examples("llmhost files upload requests.jsonl", "llmhost files list"),
)

BatchId = Annotated[str, typer.Argument(metavar="ID", help="As `llmhost batches list` shows it.")]
FileId = Annotated[str, typer.Argument(metavar="ID", help="As `llmhost files list` shows it.")]
Org = Annotated[str | None, typer.Option("--org", metavar="ORG", help="Of this organisation only.")]
ApiKey = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Key to ask with, or LLMHOST_API_KEY.", show_default=False),
]
Source = Annotated[Path, typer.Argument(metavar="FILE", help="File to send.")]
Purpose = Literal["batch", "user_data", "assistants", "fine-tune", "vision"]


def add_to(app: typer.Typer) -> None:
    app.add_typer(batches)
    app.add_typer(files)


@batches.command(
    name="create",
    epilog=examples(
        "llmhost batches create requests.jsonl",
        "llmhost batches create texts.jsonl --endpoint /v1/embeddings --window 2h --json",
    ),
)
def create_batch(
    file: Source,
    endpoint: Annotated[
        str, typer.Option(metavar="PATH", help="Route that its lines name.")
    ] = "/v1/chat/completions",
    window: Annotated[
        str, typer.Option(metavar="TIME", help="Time that it has, such as 24h, 90m or 2d.")
    ] = "24h",
    api_key: ApiKey = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Upload a file of requests, one JSON object a line, and run them as the holder of the key."""
    with closing(connect(url, api_key, data_dir)) as client, _opened(file) as content:
        sent = client.upload(file.name, content, "batch")
        made = client.create_batch(
            {"input_file_id": sent["id"], "endpoint": endpoint, "completion_window": window}
        )
    if as_json:
        show.value(made)
        return
    typer.echo(f"{made['id']} is {made['status']}. `llmhost batches show {made['id']}` follows it.")


@batches.command(
    name="list", epilog=examples("llmhost batches list", "llmhost batches list --org acme --json")
)
def list_batches(
    org: Org = None, url: Url = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """List batches, the newest first, and how far they are."""
    with open_admin(url, data_dir) as admin:
        data = admin.batches(org=org)
    columns: dict[str, show.Cell] = {
        "batch": "id",
        "org": "org",
        "status": "status",
        "endpoint": "endpoint",
        "lines": lambda row: row["request_counts"]["total"],
        "completed": lambda row: row["request_counts"]["completed"],
        "failed": lambda row: row["request_counts"]["failed"],
    }
    show.rows(data, columns, as_json=as_json, empty="No batches.")


@batches.command(
    name="show",
    epilog=examples("llmhost batches show batch_1f0c", "llmhost batches show batch_1f0c --json"),
)
def show_batch(
    batch: BatchId, url: Url = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Show one batch: its state, its counts and its files."""
    with open_admin(url, data_dir) as admin:
        _say(admin.batch(batch), as_json=as_json)


@batches.command(
    name="cancel",
    epilog=examples(
        "llmhost batches cancel batch_1f0c", "llmhost batches cancel batch_1f0c --json"
    ),
)
def cancel_batch(
    batch: BatchId, url: Url = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Begin no more of a batch's lines. Those that run go on to their ends."""
    with open_admin(url, data_dir) as admin:
        _say(admin.cancel_batch(batch), as_json=as_json)


@files.command(
    name="upload",
    epilog=examples(
        "llmhost files upload requests.jsonl",
        "llmhost files upload notes.txt --purpose user_data --json",
    ),
)
def upload_file(
    file: Source,
    purpose: Annotated[Purpose, typer.Option(help="What it is for.")] = "batch",
    api_key: ApiKey = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Upload a file as the holder of the key."""
    with closing(connect(url, api_key, data_dir)) as client, _opened(file) as content:
        made = client.upload(file.name, content, purpose)
    if as_json:
        show.value(made)
        return
    typer.echo(f"{made['id']} has {made['bytes']} bytes")


@files.command(
    name="fetch",
    epilog=examples(
        "llmhost files fetch file-1f0c > answers.jsonl",
        "llmhost files fetch file-1f0c --out answers.jsonl",
    ),
)
def fetch_file(
    file: FileId,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to; standard output when absent.")
    ] = None,
    api_key: ApiKey = None,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Fetch what is in a file of the key's team."""
    with closing(connect(url, api_key, data_dir)) as client:
        pieces = client.download(file)
        first = next(pieces, b"")  # a refusal comes before anything is written
        target = sys.stdout.buffer if out is None else out.open("wb")
        try:
            target.write(first)
            for piece in pieces:
                target.write(piece)
            target.flush()
        finally:
            if out is not None:
                target.close()


@files.command(
    name="list", epilog=examples("llmhost files list", "llmhost files list --org acme --json")
)
def list_files(
    org: Org = None, url: Url = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """List files, the newest first."""
    with open_admin(url, data_dir) as admin:
        data = admin.files(org=org)
    columns: dict[str, show.Cell] = {
        "file": "id",
        "org": "org",
        "purpose": "purpose",
        "name": "filename",
        "bytes": "bytes",
    }
    show.rows(data, columns, as_json=as_json, empty="No files.")


@files.command(
    name="delete",
    epilog=examples("llmhost files delete file-1f0c", "llmhost files delete file-1f0c --json"),
)
def delete_file(
    file: FileId, url: Url = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Delete a file. The input of a batch that has not ended can't be."""
    with open_admin(url, data_dir) as admin:
        gone = admin.delete_file(file)
    if as_json:
        show.value(gone)
        return
    typer.echo(f"{show.printable(gone['id'])} is deleted")


def _opened(file: Path) -> IO[bytes]:
    try:
        return file.open("rb")
    except OSError as error:
        raise ConfigError(f"{file} can't be read: {error.strerror}.") from error


def _say(batch: show.Row, *, as_json: bool) -> None:
    if as_json:
        show.value(batch)
        return
    counts = batch["request_counts"]
    typer.echo(
        f"{batch['id']} of {show.printable(batch['org'])} is {batch['status']}:"
        f" {counts['completed']} of {counts['total']} lines answered, {counts['failed']} failed"
    )
    for name in ("input_file_id", "output_file_id", "error_file_id"):
        if batch[name] is not None:
            typer.echo(f"  {name.removesuffix('_file_id')}: {batch[name]}")
    for fault in (batch["errors"] or {"data": []})["data"]:
        place = "" if fault["line"] is None else f"line {fault['line']}: "
        typer.echo(f"  {place}{show.printable(fault['message'])}")
