"""What a plugin must look like, checked when it is loaded: a hook that silently isn't called is worse than none."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from llmhost.core.errors import ConfigError
from llmhost.hooks import spec

Options = Callable[[object, str], Mapping[str, Any] | None]
"""What `hookimpl` wrote on an attribute of a plugin; None when it is no implementation."""


@cache
def hook_arguments(hook: str) -> tuple[str, ...]:
    """The facts that a hook offers, in order."""
    return tuple(inspect.signature(getattr(spec, hook)).parameters)


def check_plugin(name: str, plugin: object, options: Options) -> None:
    """Raises ConfigError, naming plugin, hook and cure, for what pluggy lets pass or says less clearly."""
    found = [fault for attribute in dir(plugin) for fault in _faults(plugin, attribute, options)]
    if found:
        raise ConfigError(f"Plugin {name!r}: {found[0]}")
    if not any(options(plugin, attribute) is not None for attribute in dir(plugin)):
        raise ConfigError(
            f"Plugin {name!r} implements no hook. Mark its hooks with @hookimpl;"
            " a file that only helps other plugins has a name that starts with an underscore."
        )


def _faults(plugin: object, attribute: str, options: Options) -> Iterator[str]:
    marks = options(plugin, attribute)
    if marks is None:
        if attribute in spec.RULES and inspect.isroutine(inspect.getattr_static(plugin, attribute)):
            yield f"{attribute} is named like a hook and not marked. Put @hookimpl above it, or rename it."
        return
    hook = marks.get("specname") or attribute
    if hook in spec.RULES:
        yield from _signature_faults(hook, getattr(plugin, attribute), marks)
    elif not marks.get("optionalhook"):
        yield f"there is no hook {hook!r}.{_nearest(hook, tuple(spec.RULES))}"


def _signature_faults(
    hook: str, function: Callable[..., Any], marks: Mapping[str, Any]
) -> Iterator[str]:
    if marks.get("wrapper") or marks.get("hookwrapper"):
        yield f"{hook} is a wrapper, and wrappers are not called here. Give an opinion instead."
    elif inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        yield f"{hook} yields. Return the opinion instead."
    if spec.RULES[hook].kind is spec.Kind.REGISTER and inspect.iscoroutinefunction(function):
        yield f"{hook} is async, and registering is not. Make it a plain function."
    for argument in inspect.signature(function).parameters.values():
        yield from _argument_faults(hook, argument)


def _argument_faults(hook: str, argument: inspect.Parameter) -> Iterator[str]:
    known = hook_arguments(hook)
    if argument.kind not in (argument.POSITIONAL_ONLY, argument.POSITIONAL_OR_KEYWORD):
        yield f"{hook} takes {str(argument)!r}. Name the arguments that it needs: {', '.join(known)}."
    elif argument.default is not argument.empty:
        yield f"{hook} gives {argument.name!r} a default, which would never be used. Drop the default."
    elif argument.name not in known:
        yield (
            f"{hook} has no argument {argument.name!r}.{_nearest(argument.name, known)}"
            f" It has: {', '.join(known)}."
        )


def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
