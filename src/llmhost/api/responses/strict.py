"""Whether parameters are as OpenAI wants those of strict tools: closed objects, all of whose properties are required.

The Responses API takes tools for strict unless they say otherwise. Those that are not made for it go on as they are.
"""

from typing import Any

import msgspec

from llmhost.api.loose import Raw

_PLAIN = frozenset(
    {
        *("type", "properties", "required", "additionalProperties", "items", "enum", "const"),
        *("anyOf", "title", "description", "default", "minimum", "maximum", "$schema"),
    }
)
"""Keywords that can surely be held to."""
DEEPEST = 16


def is_strict(parameters: Raw) -> bool:
    try:
        schema = msgspec.json.decode(parameters)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return False  # said where it is read
    return schema is None or _is_strict(schema, DEEPEST)


def _is_strict(schema: Any, depth: int) -> bool:
    if not isinstance(schema, dict) or not depth or not schema.keys() <= _PLAIN:
        return False
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        return False
    if schema.get("type") == "object" or properties:
        if schema.get("additionalProperties") is not False:
            return False
        if set(schema.get("required") or ()) != properties.keys():
            return False
    inner = [*properties.values(), *_listed(schema.get("anyOf"))]
    if "items" in schema:
        inner.append(schema["items"])
    return all(_is_strict(each, depth - 1) for each in inner)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
