"""Where a model's files are: the package, a folder, or a hub whose files are fetched once."""

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from llmhost.core.errors import ModelUnavailable
from llmhost.deploy.fetch import Place, fetch
from llmhost.deploy.hub import HubSource, endpoint, parse_hub_source
from llmhost.deploy.transfer import Progress, Report
from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.deploy")

BUILT_IN_MODELS = Path(__file__).parent.parent / "engines" / "builtin"

LOG_EVERY_S = 30.0
"""How often a node says how far a fetch is."""

SAMPLES = 16
SAMPLE_BYTES = 2**16
"""How much of a large file tells it apart: this many places, this much at each."""


def find_files(source: str, models_dir: Path) -> Path:
    """The folder that holds `source`'s files, fetching them if need be. Raises ModelUnavailable.

    Blocks; `hf:` sources may download. What has been fetched once is used again without a network.
    """
    return find_local(source, models_dir) or _fetch(parse_hub_source(source), models_dir)


def find_local(source: str, models_dir: Path) -> Path | None:
    """The folder, if it is here; None for a hub source that has not been fetched. Raises ModelUnavailable."""
    kind, _, rest = source.partition(":")
    if kind == "builtin" and rest:
        return _built_in(rest)
    if kind == "hf" and rest:
        return Place.of(parse_hub_source(rest), models_dir).version
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise ModelUnavailable(
            f"There is no folder {str(folder)!r}. A source is builtin:NAME, a folder, or hf:ORG/NAME[@REVISION]."
        )
    return folder


def presence(source: str, models_dir: Path) -> str:
    """Whether a source's files are here: `present`, `partial` where a fetch was cut off, or `absent`."""
    try:
        if find_local(source, models_dir) is not None:
            return "present"
    except ModelUnavailable:
        return "absent"
    return "partial" if Place.of(parse_hub_source(source), models_dir).is_begun else "absent"


def fingerprint(folder: Path) -> str:
    """Tells whether a folder holds other files than before: names and sizes of all, contents of the small ones, and
    samples of the large ones, since weights that were trained on have the size that they had."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for start in _samples(size):
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _samples(size: int) -> Sequence[int]:
    """Where to read: everywhere in a small file, at evenly spaced places up to the end of a large one."""
    if size < 2**20:
        return range(0, size, SAMPLE_BYTES)
    return [(size - SAMPLE_BYTES) * i // (SAMPLES - 1) for i in range(SAMPLES)]


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
