"""Which module of transformers has which name, kept over restarts.

transformers reads the files of all its models for that whenever it is imported, and does so twice. What it found is
kept in a file with a mark of the installation; without a file at least the second time is spared.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

_OWNER = "transformers.utils.import_utils"

Names = dict[frozenset[str], dict[str, set[str]]]
"""By what has to be installed for it: modules, and the names that each has."""


class Kept(msgspec.Struct):
    mark: str
    names: list[tuple[list[str], dict[str, list[str]]]]


@contextmanager
def known_names(kept: Path | None) -> Iterator[None]:
    """Have transformers, while it is imported, take the names of its models from `kept`, or put them there."""
    watch = _Watch(kept)
    sys.meta_path.insert(0, watch)
    try:
        yield
    finally:
        sys.meta_path.remove(watch)


class _Watch(MetaPathFinder):
    """Is there when the module that looks for names has been read, before anybody asks it."""

    def __init__(self, kept: Path | None) -> None:
        self._kept = kept

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != _OWNER:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(self._read, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec

    def _read(self, read: Callable[[ModuleType], None], module: ModuleType) -> None:
        read(module)
        find: Callable[..., Names] | None = getattr(module, "define_import_structure", None)
        if find is not None and module.__file__ is not None:
            models = Path(module.__file__).parents[1] / "models"
            module.define_import_structure = _Finder(find, models, self._kept)  # type: ignore[attr-defined]


class _Finder:
    """In the place of `define_import_structure`: the folder of all models is looked through once, others as ever."""

    def __init__(self, find: Callable[..., Names], models: Path, kept: Path | None) -> None:
        self._find, self._models, self._kept = find, models, kept
        self._known: Names | None = None

    def __call__(self, module_path: str | Path, prefix: str | None = None) -> Names:
        if Path(module_path) not in (self._models, self._models / "__init__.py"):
            return self._find(module_path, prefix)
        if self._known is None:
            self._known = self._all()
        start = "" if prefix is None else f"{prefix}."
        return {
            needs: {f"{start}{module}": set(names) for module, names in modules.items()}
            for needs, modules in self._known.items()
        }

    def _all(self) -> Names:
        if self._kept is None:
            return self._find(self._models)
        mark = _mark(self._models)
        known = _kept_names(self._kept, mark)
        if known is None:
            known = self._find(self._models)
            _keep(self._kept, mark, known)
        return known


def _mark(models: Path) -> str:
    version = getattr(sys.modules.get("transformers"), "__version__", "")
    stats = [path.stat() for path in (models, models / "__init__.py")]
    return ":".join([version, str(models), *(f"{one.st_mtime_ns}-{one.st_size}" for one in stats)])


def _kept_names(path: Path, mark: str) -> Names | None:
    """None for a file of another installation, and for one that isn't there or is spoilt."""
    with suppress(OSError, msgspec.MsgspecError):
        kept = msgspec.json.decode(path.read_bytes(), type=Kept)
        if kept.mark == mark:
            return {
                frozenset(needs): {module: set(names) for module, names in modules.items()}
                for needs, modules in kept.names
            }
    return None


def _keep(path: Path, mark: str, names: Names) -> None:
    """A disk that is full costs the time again at the next start, and nothing now."""
    rows = [
        (sorted(needs), {module: sorted(these) for module, these in modules.items()})
        for needs, modules in names.items()
    ]
    part = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(msgspec.json.encode(Kept(mark, rows)))
        part.replace(path)
