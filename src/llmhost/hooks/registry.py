"""The plugins of one host: loaded, checked, resolved to call lists, counted. Never global."""

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pluggy import HookImpl, PluginManager

from llmhost.config.schema.server import PluginSettings
from llmhost.core.errors import ConfigError
from llmhost.hooks import spec
from llmhost.hooks.check import check_plugin, hook_arguments
from llmhost.hooks.find import Found, in_folder, installed, names
from llmhost.hooks.stats import CallStats
from llmhost.hooks.workers import Workers

log = logging.getLogger("llmhost.hooks")


class Implementation:
    """One plugin's function for one hook, with what is known of its calls."""

    def __init__(self, hook: str, found: HookImpl) -> None:
        self.hook = hook
        self.plugin = found.plugin_name
        self.rule = spec.RULES[hook]
        self.function: Callable[..., Any] = found.function
        self.argnames = tuple(found.argnames)
        known = hook_arguments(hook)
        self.given = _placed(self.function, tuple(map(known.index, self.argnames)))
        """The function, called with all facts of its hook in their order."""
        self.stats = CallStats()
        self.is_async = inspect.iscoroutinefunction(self.function)
        self.workers: Workers | None = None
        """Threads, for a sync one that blocks; None while it is called on the loop."""

    def move_to_threads(self) -> None:
        if self.workers is None and not self.is_async:
            self.workers = Workers(f"{self.plugin}-{self.hook}")


def _placed(
    function: Callable[..., Any], places: tuple[int, ...]
) -> Callable[[Sequence[object]], Any]:
    """A function of the facts at these places, as one of all: found once, and not by names at each call."""
    match places:
        case ():
            return lambda _: function()
        case (one,):
            return lambda facts: function(facts[one])
        case (one, other):
            return lambda facts: function(facts[one], facts[other])
        case _:
            return lambda facts: function(*[facts[place] for place in places])


@dataclass(frozen=True, slots=True)
class HookReport:
    """One hook of one plugin. Times are in milliseconds, over the last calls."""

    hook: str
    calls: int
    errors: int
    timeouts: int
    dropped: int
    in_threads: bool
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class PluginReport:
    """One loaded plugin, as `llmhost plugins` lists it."""

    name: str
    version: str | None
    origin: str
    hooks: tuple[HookReport, ...]


class Plugins:
    """All plugins of one host, in the order in which they are asked; fixed once made.

    Objects come first, as given; then drop-in files and then installed packages, each by name. `tryfirst` and
    `trylast` move an implementation before or behind the rest. Raises ConfigError naming the plugin.
    """

    def __init__(
        self,
        found: Iterable[Found] = (),
        *,
        timeout_s: float = PluginSettings().timeout_s,
        trace: bool = False,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.timeout_s = timeout_s
        self.trace = trace
        self.timer = timer
        self._found = tuple(found)
        manager = _registered(self._found)
        self.lists = {
            hook: tuple(Implementation(hook, impl) for impl in reversed(impls))
            for hook in spec.RULES
            if (impls := getattr(manager.hook, hook).get_hookimpls())
        }

    @classmethod
    def load(
        cls,
        settings: PluginSettings = PluginSettings(),  # noqa: B008 - frozen
        *,
        folder: Path | None = None,
        objects: Iterable[object] = (),
        packages: bool = True,
        trace: bool = False,
    ) -> "Plugins":
        """From settings. `folder` is looked into when the settings name none, and may be absent."""
        disabled = frozenset(settings.disabled)
        if settings.dir is not None:
            folder = Path(settings.dir).expanduser()
            if not folder.is_dir():
                raise ConfigError(f"[plugins] dir is {settings.dir!r}, which is not a folder.")
        given = [_given(one) for one in objects]
        if disabled:  # looking through all installed packages takes as long as opening a database
            known = names(folder, packages=packages) | {one.name for one in given}
            for name in disabled - known:
                log.warning("plugin.absent plugin=%s why=only_named_in_disabled", name)
        found = [one for one in given if one.name not in disabled]
        found += in_folder(folder, disabled) if folder is not None else ()
        found += installed(disabled) if packages else ()
        plugins = cls(found, timeout_s=settings.timeout_s, trace=trace)
        for one in found:
            log.info(
                "plugin.loaded plugin=%s version=%s origin=%s", one.name, one.version, one.origin
            )
        return plugins

    @classmethod
    def of(cls, *objects: object, timeout_s: float = 2.0, trace: bool = False) -> "Plugins":
        """From modules or other objects alone, as tests do."""
        return cls(map(_given, objects), timeout_s=timeout_s, trace=trace)

    def has(self, hook: str) -> bool:
        """Whether any plugin implements the hook: one lookup, so that what nobody asked for costs nothing."""
        return hook in self.lists

    def implementations(self, hook: str) -> tuple[Implementation, ...]:
        """In the order in which they are asked."""
        return self.lists.get(hook, ())

    def report(self) -> tuple[PluginReport, ...]:
        return tuple(
            PluginReport(one.name, one.version, one.origin, self._hooks_of(one.name))
            for one in self._found
        )

    def close(self) -> None:
        """Let the threads of sync implementations end."""
        for implementations in self.lists.values():
            for implementation in implementations:
                if implementation.workers is not None:
                    implementation.workers.close()

    def _hooks_of(self, plugin: str) -> tuple[HookReport, ...]:
        return tuple(
            _hook_report(implementation)
            for implementations in self.lists.values()
            for implementation in implementations
            if implementation.plugin == plugin
        )


def _hook_report(implementation: Implementation) -> HookReport:
    stats = implementation.stats
    return HookReport(
        hook=implementation.hook,
        calls=stats.calls,
        errors=stats.errors,
        timeouts=stats.timeouts,
        dropped=stats.dropped,
        in_threads=implementation.workers is not None,
        p50_ms=stats.percentile_ms(0.5),
        p99_ms=stats.percentile_ms(0.99),
    )


def _given(plugin: object) -> Found:
    name: str = getattr(plugin, "__name__", type(plugin).__name__)
    version = getattr(plugin, "__version__", None)
    return Found(name.rpartition(".")[2], "given", version, plugin)


def _registered(found: tuple[Found, ...]) -> PluginManager:
    """Registered last to first, because pluggy asks the last registered first."""
    manager = PluginManager("llmhost")
    manager.add_hookspecs(spec)
    seen: dict[str, Found] = {}
    for one in found:
        if one.name in seen:
            raise ConfigError(
                f"Two plugins are called {one.name!r}: one from {seen[one.name].origin} and one from {one.origin}."
                " Rename or remove one."
            )
        seen[one.name] = one
        check_plugin(one.name, one.plugin, manager.parse_hookimpl_opts)
    for one in reversed(found):
        try:
            manager.register(one.plugin, name=one.name)
        except ValueError as error:  # the same object under two names
            raise ConfigError(f"Plugin {one.name!r} from {one.origin}: {error}") from None
    manager.check_pending()
    return manager
