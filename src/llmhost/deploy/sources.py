"""Where a model's files are: the package, a folder, or a hub whose files are fetched once."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from llmhost.core.errors import ModelUnavailable

BUILT_IN_MODELS = Path(__file__).parent.parent / "engines" / "builtin"

HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")
"""What is fetched from a hub: no pickles and no programs."""

FETCHED_MARK = ".llmhost-complete"
"""Left in a folder once all of its files have arrived: a fetch that was cut off is taken up again."""


SAMPLES = 16
SAMPLE_BYTES = 2**16
"""How much of a large file tells it apart: this many places, this much at each."""


def find_files(source: str, models_dir: Path) -> Path:
    """The folder that holds `source`'s files, fetching them if need be. Raises ModelUnavailable.

    Blocks; `hf:` sources may download. What has been fetched once is used again without a network.
    """
    return find_local(source, models_dir) or _fetch(source.removeprefix("hf:"), models_dir)


def find_local(source: str, models_dir: Path) -> Path | None:
    """The folder, if it is here; None for a hub source that has not been fetched. Raises ModelUnavailable."""
    kind, _, rest = source.partition(":")
    if kind == "builtin" and rest:
        return _built_in(rest)
    if kind == "hf" and rest:
        target = _hub_folder(rest, models_dir)
        return target if (target / FETCHED_MARK).is_file() else None
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise ModelUnavailable(
            f"There is no folder {str(folder)!r}. A source is builtin:NAME, a folder, or hf:ORG/NAME[@REVISION]."
        )
    return folder


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


def _hub_folder(name: str, models_dir: Path) -> Path:
    repository, _, revision = name.partition("@")
    return models_dir / repository.replace("/", "--") / (revision or "main")


def _fetch(name: str, models_dir: Path) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    target = _hub_folder(name, models_dir)
    try:
        snapshot_download(
            repository,
            revision=revision or None,
            local_dir=target,
            allow_patterns=list(HUB_FILES),
        )
    except Exception as error:  # the hub's client and its HTTP library have trees of their own
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelUnavailable(f"Could not fetch {name!r} from the hub: {said}") from error
    (target / FETCHED_MARK).touch()
    return target
