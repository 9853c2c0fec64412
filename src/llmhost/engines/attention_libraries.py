"""Libraries that may attend in place of our kernels, seen without importing them.

None is needed. They attend to rows of several tokens, and our kernels to all others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

Capability = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    option: str
    """Value of the option `attention`."""
    shown: str
    module: str
    distribution: str
    least: Capability
    """Compute capability of the first GPU that it is for."""
    below: Capability
    """And of the first that it is not for any more."""
    cure: str
    """How to install it."""


FLASH_ATTENTION_3 = Library(
    option="flash_attention_3",
    shown="FlashAttention-3",
    module="flash_attn_interface",
    distribution="flash_attn_3",
    least=(9, 0),
    below=(10, 0),
    cure="build it from the folder hopper of github.com/Dao-AILab/flash-attention",
)
FLASHINFER = Library(
    option="flashinfer",
    shown="FlashInfer",
    module="flashinfer",
    distribution="flashinfer-python",
    least=(8, 0),
    below=(99, 0),
    cure="pip install 'llmhost[flashinfer]'",
)
LIBRARIES = (FLASH_ATTENTION_3, FLASHINFER)
"""In the order in which `attention = "auto"` asks them."""


def library_of(option: str) -> Library | None:
    return next((one for one in LIBRARIES if one.option == option), None)


def library_refusal(
    library: Library,
    capability: Capability | None,
    *,
    finds: Callable[[str], object | None] = find_spec,
) -> str | None:
    """Why it can't be used on a GPU of this compute capability; None if nothing is in its way that can be seen.

    A capability that is not known is taken for a good one. `finds` looks for modules; tests bring another.
    """
    if not _finds(library.module, finds):
        return "not installed"
    if capability is None or library.least <= capability < library.below:
        return None
    more = "" if library.below <= (10, 0) else " and more"
    return f"made for compute capability {_shown(library.least)}{more}, and this GPU has {_shown(capability)}"


def installed_version(library: Library) -> str | None:
    try:
        return version(library.distribution)
    except PackageNotFoundError:
        return None


def has_flashinfer_kernels(
    environ: Mapping[str, str],
    *,
    home: Path | None = None,
    finds: Callable[[str], object | None] = find_spec,
) -> bool:
    """Whether FlashInfer has any kernels for prompts: compiled for this user before, or installed with it."""
    if _finds("flashinfer_jit_cache", finds):
        return True
    base = environ.get("FLASHINFER_WORKSPACE_BASE")
    folder = (Path(base) if base else home or Path.home()) / ".cache" / "flashinfer"
    release = installed_version(FLASHINFER) or "*"
    kernels = folder.glob(f"{release}/*/cached_ops/batch_prefill_with_kv_cache_*/*.so")
    return next(kernels, None) is not None


def _finds(module: str, finds: Callable[[str], object | None]) -> bool:
    try:
        return finds(module) is not None
    except ValueError:  # something in its place says not where it comes from
        return False


def _shown(capability: Capability) -> str:
    return ".".join(map(str, capability))
