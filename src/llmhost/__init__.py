"""llmhost: one process that serves, meters and bills large language models.

What a plugin needs is here by name and imported on first use, so that `import llmhost` stays light.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmhost.hooks.spec import Price as Price
    from llmhost.hooks.spec import Refusal as Refusal
    from llmhost.hooks.spec import hookimpl as hookimpl

__version__ = "0.1.0"

_FOR_PLUGINS = ("Price", "Refusal", "hookimpl")


def __getattr__(name: str) -> object:
    if name in _FOR_PLUGINS:
        from llmhost.hooks import spec

        return getattr(spec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*globals(), *_FOR_PLUGINS))
