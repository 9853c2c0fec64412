"""Tools in namespaces. Models and their templates know plain names only, so `find` in `crm` is `crm__find` to them.

What callers send and get has the two names apart, as they gave them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from llmhost.api.responses.bodies import WireNamed, WireOwnTool, WireTool
from llmhost.core.errors import InvalidValue, MissingParameter, UnsupportedParameter

NAMESPACE = "namespace"
_BETWEEN = "__"

Spaces = Mapping[str, tuple[str, str]]
"""Of each tool in a namespace, by the name that the model knows: the namespace, and its name there."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A tool under the name that the model knows."""

    tool: WireOwnTool
    at: str
    """The field that it came in."""
    own: tuple[str, str] | None = None
    """Its namespace, and its name there."""


def flat_name(namespace: str | None, name: str) -> str:
    if namespace is None:
        return name
    return f"{namespace.removesuffix(_BETWEEN)}{_BETWEEN}{name}"


def placed(tools: Sequence[WireTool]) -> list[Placed]:
    """All tools, those in namespaces among them, each by itself. Raises BadRequest."""
    found: list[Placed] = []
    for place, tool in enumerate(tools):
        at = f"tools[{place}]"
        found += _in_namespace(tool, at) if tool.type == NAMESPACE else [Placed(tool, at)]
    names: set[str | None] = set()
    for each in found:
        if each.tool.name in names and any(other.own for other in found):
            raise InvalidValue(
                f"Two tools are called {each.tool.name!r}, namespaces and all.",
                param=f"{each.at}.name",
            )
        names.add(each.tool.name)
    return found


def _in_namespace(space: WireTool, at: str) -> list[Placed]:
    """The first tool tells the model what is said of all of them."""
    if space.name is None:
        raise MissingParameter(f"{at}.name")
    found: list[Placed] = []
    for place, tool in enumerate(space.tools or ()):
        here = f"{at}.tools[{place}]"
        if tool.type == NAMESPACE:
            raise UnsupportedParameter("A namespace holds no namespaces.", param=f"{here}.type")
        if tool.name is None:
            raise MissingParameter(f"{here}.name")
        about = [tool.description] if place else [space.description, tool.description]
        known = msgspec.structs.replace(
            tool,
            name=flat_name(space.name, tool.name),
            description="\n\n".join(filter(None, about)) or None,
        )
        found.append(Placed(known, here, (space.name, tool.name)))
    if not found:
        raise InvalidValue(f"The namespace {space.name!r} holds no tools.", param=f"{at}.tools")
    return found


def spaces_of(tools: Sequence[Placed]) -> Spaces:
    return {each.tool.name: each.own for each in tools if each.tool.name and each.own}


def names_meant(chosen: WireNamed, tools: Sequence[Placed]) -> list[tuple[str, str]]:
    """Kind and name, as the model knows it, of what a choice names: a tool, or all of a namespace. What is in one may
    go by its name there, where that is the only one."""
    if chosen.type == NAMESPACE:
        inside = [each.tool for each in tools if each.own and each.own[0] == chosen.name]
        return [(tool.type, tool.name) for tool in inside if tool.name]
    if chosen.name is None:
        return []
    if chosen.namespace is not None:
        return [(chosen.type, flat_name(chosen.namespace, chosen.name))]
    known = {each.tool.name for each in tools}
    inside = [each.tool for each in tools if each.own and each.own[1] == chosen.name]
    is_own = chosen.name not in known and len(inside) == 1
    return [(chosen.type, (inside[0].name if is_own else None) or chosen.name)]
