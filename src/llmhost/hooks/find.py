"""Where plugins come from: a folder of drop-in files, and installed packages."""

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from llmhost.core.errors import ConfigError

GROUP = "llmhost"
"""The entry point group of installed plugins."""
SKIPPED = ("_", "test_", "conftest")
"""Files in a plugin folder that are no plugins start with one of these."""


@dataclass(frozen=True, slots=True)
class Found:
    """One plugin before it is checked."""

    name: str
    origin: str
    """The file, or the distribution."""
    version: str | None
    plugin: object


def names(folder: Path | None, *, packages: bool) -> set[str]:
    """What could be loaded from there, without loading it."""
    files = {path.stem for path in folder.glob("*.py")} if folder is not None else set()
    return files | ({point.name for point in entry_points(group=GROUP)} if packages else set())


def in_folder(folder: Path, disabled: frozenset[str]) -> Iterator[Found]:
    """Each `*.py` file as a module of its own, by name. Raises ConfigError, naming the file, when one is broken."""
    for path in sorted(folder.glob("*.py")):
        if path.name.startswith(SKIPPED) or path.stem in disabled:
            continue
        module = _load_file(path)
        version = getattr(module, "__version__", None)
        yield Found(path.stem, str(path), None if version is None else str(version), module)


def _load_file(path: Path) -> object:
    # The prefix keeps a plugin called json.py from hiding the real one; being in sys.modules is what dataclasses need.
    name = f"llmhost_plugins.{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ConfigError(f"Plugin {path} can't be read as Python.")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(f"Plugin {path} failed to load: {_said(error)}") from error
    return module


def installed(disabled: frozenset[str]) -> Iterator[Found]:
    """Entry points of the group `llmhost`, by name. Raises ConfigError, naming the package, when one is broken."""
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        if point.name not in disabled:
            package = point.dist.name if point.dist else point.value
            version = point.dist.version if point.dist else None
            yield Found(point.name, package, version, _load_point(point, package))


def _load_point(point: EntryPoint, package: str) -> object:
    try:
        plugin: object = point.load()
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"Plugin {point.name!r} of the package {package} failed to load: {_said(error)}."
            f" Repair or uninstall the package, or name the plugin under `disabled` in [plugins]."
        ) from error
    return plugin


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
