"""What calls that are written as Python's are held to: Llama 4, LFM2, OLMo 3 and others.

Values are JSON, of which Python reads texts, numbers, lists and tables as its own; `True`, `False` and `None` may stand
for those of JSON where a value is nothing else. Arguments come in the order of the schema.
"""

import json
from collections.abc import Mapping, Sequence
from keyword import iskeyword
from typing import Any

from llmhost.text.grammar_tagged import OF_OBJECT, Unspeakable

WORDS = {"boolean": '"True" | "False"', "null": '"None"'}
ANY_NAME = "/[A-Za-z_][A-Za-z0-9_]{0,63}/"


def pythonic_calls(names: Sequence[str]) -> list[str]:
    """`call`: one of several. Raises Unspeakable for a name that is none in Python."""
    for name in names:
        _check_name(name, "tool")
    calls = [f'call{i}: "{name}(" args{i} ")"' for i, name in enumerate(names)]
    return [*calls, "call: " + " | ".join(f"call{i}" for i in range(len(names)))]


def pythonic_arguments(place: int, schema: Mapping[str, Any]) -> list[str]:
    """What stands between the parentheses of the tool in that place. Raises Unspeakable."""
    if "properties" not in schema and not schema.keys() - {"type", "x-guidance"}:
        one = f'{ANY_NAME} "=" any{place}'
        any_value = f"any{place}: any{place}j | {' | '.join(WORDS.values())}"
        loose = {name: schema[name] for name in ("x-guidance",) if name in schema}
        json_value = f"any{place}j: %json {json.dumps(loose)}"
        return [f'args{place}: ({one} (", " {one})*)?', any_value, json_value]
    if more := sorted(schema.keys() - OF_OBJECT):
        raise Unspeakable(f"arguments as Python writes them can't be held to {', '.join(more)}")
    properties, required = schema.get("properties", {}), schema.get("required", ())
    lines: list[str] = []
    for number, (name, each) in enumerate(properties.items()):
        _check_name(name, "argument")
        lines += _value(f"value{place}x{number}", each, schema)
    return [f"args{place}: first{place}x0", *_order(place, properties, required), *lines]


def _order(place: int, properties: Mapping[str, Any], required: Sequence[str]) -> list[str]:
    """Rules for what may come from each argument on: with nothing before it, and with something."""
    lines: list[str] = []
    for number, name in enumerate(properties):
        said = f'"{name}=" value{place}x{number} later{place}x{number + 1}'
        for kind, comma in (("first", ""), ("later", '", " ')):
            without = "" if name in required else f" | {kind}{place}x{number + 1}"
            lines.append(f"{kind}{place}x{number}: {comma}{said}{without}")
    end = len(properties)
    return [*lines, *(f'{kind}{place}x{end}: ""' for kind in ("first", "later"))]


def _value(rule: str, schema: Any, root: Mapping[str, Any]) -> list[str]:
    defs = {name: root[name] for name in ("$defs", "definitions", "x-guidance") if name in root}
    inner = {**defs, **schema} if isinstance(schema, Mapping) else schema
    kinds = schema.get("type") if isinstance(schema, Mapping) else None
    known = [kinds] if isinstance(kinds, str) else kinds or []
    bound = isinstance(schema, Mapping) and schema.keys() & {"enum", "const", "anyOf", "allOf"}
    words = [] if bound else [WORDS[kind] for kind in known if kind in WORDS]
    either = " | ".join([f"{rule}j", *words])
    return [f"{rule}: {either}", f"{rule}j: %json {json.dumps(inner)}"]


def _check_name(name: str, what: str) -> None:
    if not name.isidentifier() or not name.isascii() or iskeyword(name):
        raise Unspeakable(f"Python has no {what} named {name!r}")
