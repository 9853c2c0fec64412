"""Where a template's calls have their names and arguments, if both are found before a call has ended.

A transform may put a call together of anything. Of the common ones it is plain which text is the arguments, so they can
be told while they come; the others are told when their part has ended.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PATH = re.compile(r"\{(\w+)(?:\.(\w+))?\}")
_CONTENT = "content"


@dataclass(frozen=True, slots=True)
class Outline:
    """Of the three places of a name one is not None."""

    name: str | None = None
    """The same for all calls."""
    capture: str | None = None
    """The group of the opener that has it."""
    name_key: str | None = None
    """The member of each call's object."""
    arguments_key: str | None = None
    """The member that has the arguments; None where they are all that the part says."""

    def name_of(self, captures: Mapping[str, str]) -> str | None:
        """Before the part has said anything."""
        return self.name if self.capture is None else captures.get(self.capture)


def outline_of(
    parser: str, args: Mapping[str, Any], transform: Any, *, is_each: bool
) -> Outline | None:
    """None where only the end tells."""
    if args.get("merge_duplicates") or args.get("allow_non_json"):
        return None
    made = transform.get("function", transform) if isinstance(transform, dict) else transform
    if made is None or made == "{content}":
        return _in_value("name", "arguments") if parser == "json" and not is_each else None
    if not isinstance(made, dict):
        return None
    name, arguments = made.get("name"), made.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, str):
        return None
    said, given = _PATH.fullmatch(name), _PATH.fullmatch(arguments)
    if given is None:
        return None
    if is_each or given[2] is not None:
        return _of_members(said, given, is_each=is_each) if parser == "json" else None
    if given[1] != _CONTENT:
        return None
    if said is None:
        return Outline(name=name)
    return Outline(capture=said[1]) if said[2] is None and said[1] != _CONTENT else None


def _of_members(said: Any, given: Any, *, is_each: bool) -> Outline | None:
    """Of an object, `{content.name}`, or of each in a list, `{name}`."""
    if said is None:
        return None
    if is_each:
        return _in_value(said[1], given[1]) if (said[2], given[2]) == (None, None) else None
    is_theirs = said[1] == given[1] == _CONTENT and said[2] is not None
    return _in_value(said[2], given[2]) if is_theirs else None


def _in_value(name: str, arguments: str) -> Outline | None:
    return Outline(name_key=name, arguments_key=arguments) if name != arguments else None
