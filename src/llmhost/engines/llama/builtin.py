"""The built-in models as GGUF files: made of the ones that come with the package, when they are first asked for."""

import hashlib
import logging
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.engines")

TYPE = "f32"
"""So that they give the very tokens that the torch engine gives."""

MADE_BY = 1
"""Raised when the exporter comes to write something else."""


def find_built_in(folder: Path, models_dir: Path) -> Path | None:
    """The file of a built-in model's folder, None while it has not been made."""
    path = _path(folder, models_dir)
    return path if path.is_file() else None


def make_built_in(folder: Path, models_dir: Path) -> Path:
    """Make the file, and forget those of earlier versions. Blocks for a second or so. Raises ModelUnavailable."""
    from llmhost.engines.llama.export import export

    path = _path(folder, models_dir)
    log_event(log, "gguf.making", model=folder.name, file=str(path))
    started_s = time.monotonic()
    done = export(folder, path, TYPE, lambda what, done, total: None)
    for other in path.parent.glob(f"{folder.name}-*.gguf"):
        if other.name.removesuffix(path.suffix).rpartition("-")[0] == folder.name and other != path:
            with suppress(OSError):  # another process has done so
                other.unlink()
    log_event(
        log,
        "gguf.made",
        model=folder.name,
        bytes=done.size_bytes,
        took_s=round(time.monotonic() - started_s, 3),
    )
    return path


def _path(folder: Path, models_dir: Path) -> Path:
    return models_dir / "built-in" / f"{folder.name}-{_mark(folder)}.gguf"


@cache
def _mark(folder: Path) -> str:
    """Tells other files from those of an earlier package. Read once: a package does not change while it runs."""
    digest = hashlib.sha256(b"%d" % MADE_BY)
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
