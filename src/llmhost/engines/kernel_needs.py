"""What GPU kernels need of a machine, seen without importing them: Triton writes their launchers in C when they are
first used."""

import shutil
import sysconfig
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

COMPILERS = ("gcc", "clang")


def missing_for_kernels(
    environ: Mapping[str, str],
    *,
    finds: Callable[[str], object | None] = find_spec,
    which: Callable[[str], str | None] = shutil.which,
    headers: Path | None = None,
) -> str | None:
    """Why Triton's kernels can't be used here, with the cure; None if nothing is in their way.

    `headers` is the folder of Python's own C headers; tests bring other answers.
    """
    if finds("triton") is None:
        return "Triton is not installed: pip install triton"
    if not environ.get("CC") and not any(which(name) for name in COMPILERS):
        return "Triton finds no C compiler: install gcc, or name one in CC"
    folder = headers or Path(sysconfig.get_paths()["include"])
    if not (folder / "Python.h").exists():
        return f"Python's C headers are not in {folder}: install python3-dev, or its like"
    return None
