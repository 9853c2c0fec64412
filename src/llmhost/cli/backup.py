"""`llmhost backup` and `llmhost restore`: a node's keys and money, somewhere else and back."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from llmhost.cli import show
from llmhost.cli.admin import open_admin
from llmhost.cli.node import find_data_dir
from llmhost.cli.options import DataDir, Json, Url, examples

Row = dict[str, Any]


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples("llmhost backup /backup/llmhost-today", "llmhost backup today --json")
    )(backup)
    app.command(
        epilog=examples(
            "llmhost restore /backup/llmhost-today --data-dir /var/lib/llmhost",
        )
    )(restore)


def backup(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder that does not exist yet.")],
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Copy organisations, keys, prices, the ledger and analytics into a new folder, while the node runs or not.

    The folder appears when all of it is on disk. With it lie the node's id and the secret under which keys are hashed:
    keep it as safe as the keys. Models, plugins, settings and kept answers are not in it. A running node writes to its
    own machine.
    """
    with open_admin(url, data_dir) as admin:
        manifest = _follow(admin.backup(str(path.absolute())))
    if as_json:
        show.value(manifest)
    else:
        show.note(f"{path}: {manifest['entries']} ledger entries, head {manifest['head']}")


def restore(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder that backup made.")],
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a data dir of a backup, in a folder that is empty or does not exist yet.

    Every file is compared with its hash and the whole ledger is verified before anything appears there. The node that
    was backed up must not go on: two nodes would give the same numbers to different entries.
    """
    from llmhost.host.backup import restore as put_back
    from llmhost.host.backup import told

    target = find_data_dir(data_dir)
    manifest = _follow(told(lambda tell: put_back(path, target, tell)))
    if as_json:
        show.value(manifest)
    else:
        show.note(f"{target}: {manifest['entries']} ledger entries, head {manifest['head']}")


def _follow(rows: Iterable[Row]) -> Row:
    """The last row. The others are a bar where somebody watches."""
    last: Row = {}
    for row in rows:
        if last and "file" in last and row.get("file") != last["file"]:
            _draw(last, end="\n")
        if "file" in row:
            _draw(row)
        last = row
    return last


def _draw(row: Row, end: str = "") -> None:
    if not sys.stderr.isatty():
        return
    done, size = row["bytes"], row["of"] or 1
    bar = "#" * (30 * done // size)
    amount = show.memory(row["of"])
    sys.stderr.write(f"\r{row['file']:<14} [{bar:<30}] {100 * done // size:>3}% of {amount}{end}")
    sys.stderr.flush()
