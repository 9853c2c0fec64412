"""What GPU kernels need of a machine, seen without importing them: Triton writes their launchers in C when they are
first used."""

import shutil
import sysconfig
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

COMPILERS = ("gcc", "clang")


def kernels_refusal(
    environ: Mapping[str, str],
    *,
    finds: Callable[[str], object | None] = find_spec,
    which: Callable[[str], str | None] = shutil.which,
) -> str | None:
    """Why Triton's kernels can't be used here, with the cure; None if nothing is in their way that can be seen.

    `finds` and `which` look for modules and programs; tests bring others.
    """
    if finds("triton") is None:
        return "Triton is not installed: pip install triton"
    if environ.get("TRITON_INTERPRET") == "1":
        return None  # kernels are interpreted, and nothing is compiled
    if not environ.get("CC") and not any(which(name) for name in COMPILERS):
        return "Triton finds no C compiler: install gcc, or name one in CC"
    return None


def missing_headers(folder: Path | None = None) -> str | None:
    """What a compiler will miss here, with the cure, if it has not compiled what it must before."""
    if folder is None:
        scheme = sysconfig.get_default_scheme()  # of Debian's own, Triton looks at the usual place
        folder = Path(
            sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme)
        )
    if (folder / "Python.h").exists():
        return None
    return f"Python's C headers are not in {folder}: install python3-dev, or its like"
