"""The texts within a value of JSON, however deep: what rules and plugins read of tools, messages and schemas."""

import json
from collections.abc import Iterator
from typing import Any


def leaves(value: Any) -> Iterator[str]:
    """Every string, name and number in there, in order. Not recursive: a caller chose how deep it is."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str(text):
                yield text
            case bool() | None:
                pass
            case int() | float() as number:
                yield str(number)
            case dict() as table:
                for name, inner in reversed(table.items()):
                    waiting += (_arguments(inner) if name == "arguments" else inner, name)
            case list() | tuple() as items:
                waiting.extend(reversed(items))


def _arguments(value: Any) -> Any:
    """A tool call's arguments as templates get them: read from their JSON, whose escapes could hide a word."""
    if not isinstance(value, str) or "\\" not in value:
        return value
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return read if isinstance(read, dict) else value
