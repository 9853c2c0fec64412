"""Where a model's files are: the package, a folder, or a hub whose files are fetched once."""

import hashlib
import logging
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from llmhost.config.sources import BUILTIN_GGUF, FORMS, HubSource, parse_hub_source
from llmhost.core.errors import ModelUnavailable
from llmhost.deploy.fetch import Place, fetch
from llmhost.deploy.hub import endpoint
from llmhost.deploy.transfer import Progress, Report
from llmhost.engines.llama.builtin import find_built_in, make_built_in
from llmhost.engines.llama.header import parts_of
from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.deploy")

BUILT_IN_MODELS = Path(__file__).parent.parent / "engines" / "builtin"

LOG_EVERY_S = 30.0
"""How often a node says how far a fetch is."""

SAMPLES = 16
SAMPLE_BYTES = 2**16
"""How much of a large file tells it apart: this many places, this much at each."""


def find_files(source: str, models_dir: Path) -> Path:
    """The folder or GGUF file that `source` means, fetched or made if need be. Raises ModelUnavailable.

    Blocks; `hf:` sources may download. What has been fetched once is used again without a network.
    """
    if (found := find_local(source, models_dir)) is not None:
        return found
    if (built_in := _built_in_gguf(source)) is not None:
        return make_built_in(_built_in(built_in), models_dir)
    return _fetch(parse_hub_source(source), models_dir)


def find_local(source: str, models_dir: Path) -> Path | None:
    """The folder or GGUF file, if it is here; None for what must be fetched or made. Raises ModelUnavailable."""
    if (built_in := _built_in_gguf(source)) is not None:
        return find_built_in(_built_in(built_in), models_dir)
    kind, _, rest = source.partition(":")
    if kind == "builtin" and rest:
        return _built_in(rest)
    if kind == "hf" and rest:
        return Place.of(parse_hub_source(rest), models_dir).version
    path = Path(source).expanduser()
    is_gguf = path.suffix.lower() == ".gguf"
    if not (path.is_dir() or (is_gguf and path.is_file())):
        what = "file" if is_gguf else "folder"
        raise ModelUnavailable(f"There is no {what} {str(path)!r}. A source is {FORMS}.")
    return path


def presence(source: str, models_dir: Path) -> str:
    """Whether a source's files are here: `present`, `partial` where a fetch was cut off, or `absent`."""
    try:
        if find_local(source, models_dir) is not None:
            return "present"
    except ModelUnavailable:
        return "absent"
    if _built_in_gguf(source) is not None:
        return "absent"
    return "partial" if Place.of(parse_hub_source(source), models_dir).is_begun else "absent"


def fingerprint(place: Path) -> str:
    """Tells whether a folder or GGUF file holds something else than before: names and sizes of all files, contents of
    the small ones, and samples of the large ones, since weights that were trained on have the size that they had.

    Raises ModelUnavailable when parts of a GGUF file are missing.
    """
    digest = hashlib.sha256()
    for path in _files(place):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for start in _samples(size):
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def mark_of_read(before: str, after: str) -> str:
    """Of what was read in between: files that others took the place of meanwhile have a mark that nothing else has."""
    return before if after == before else f"{before} {secrets.token_hex(8)}"


def _files(place: Path) -> Sequence[Path]:
    """All that is read: a file's parts, or a folder's files; a repository may keep parts one folder deeper."""
    if place.is_file():
        return parts_of(place)
    files = sorted(path for path in place.iterdir() if path.is_file())
    deeper = [path for path in place.rglob("*.gguf") if path.parent != place]
    return files + sorted(deeper)


def _samples(size: int) -> Sequence[int]:
    """Where to read: everywhere in a small file, at evenly spaced places up to the end of a large one."""
    if size < 2**20:
        return range(0, size, SAMPLE_BYTES)
    return [(size - SAMPLE_BYTES) * i // (SAMPLES - 1) for i in range(SAMPLES)]


def _built_in_gguf(source: str) -> str | None:
    """The name of the built-in model that `source` means as a GGUF file."""
    kind, _, name = source.partition(":")
    is_gguf = kind == "builtin" and name.endswith(BUILTIN_GGUF)
    return name.removesuffix(BUILTIN_GGUF) if is_gguf else None


def _built_in(name: str) -> Path:
    folder = BUILT_IN_MODELS / name
    if not (folder / "config.json").is_file():
        known = ", ".join(sorted(p.parent.name for p in BUILT_IN_MODELS.glob("*/config.json")))
        raise ModelUnavailable(f"There is no built-in model {name!r}; there is: {known}.")
    return folder


def _fetch(source: HubSource, models_dir: Path) -> Path:
    """Fetch for a node, which tells its log."""
    log_event(log, "files.fetching", source=str(source), hub=endpoint())
    started_s = time.monotonic()
    fetched = fetch(source, models_dir, _log_progress(source), check=False)
    log_event(
        log,
        "files.fetched",
        source=str(source),
        commit=fetched.commit,
        bytes=fetched.arrived_bytes,
        took_s=round(time.monotonic() - started_s, 3),
    )
    return fetched.folder.resolve()


def _log_progress(source: HubSource) -> Report:
    """A line now and then, so that a long fetch is seen to go on."""
    told_s = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal told_s
        if (now_s := time.monotonic()) - told_s < LOG_EVERY_S:
            return
        told_s = now_s
        log_event(
            log,
            "files.arriving",
            source=str(source),
            bytes=progress.done_bytes,
            of_bytes=progress.total_bytes,
            waits_for_another=progress.is_waiting or None,
        )

    return report
