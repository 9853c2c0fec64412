"""JSON schemas as callers write them, in the words that llguidance can enforce exactly.

- Dates that no calendar has, leap seconds, and numbers without end match its formats of time: a pattern beside them
  bars these.
- `oneOf` is `anyOf` where no two branches can match at once; it sees that of few.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

Schema = Any
"""An object, or true or false."""

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = f"^(?:{_YEAR}-(?:(?:0[13-9]|1[0-2])-[0-9]{{2}}|02-(?:[01][0-9]|2[0-8]))|{_LEAP}-02-29)"
_TIME = "[0-9]{2}:[0-9]{2}:[0-5][0-9](?:[.][0-9]{1,9})?(?:[Zz]|[+-])"
PATTERNS = {
    "date": _DAY,
    "date-time": f"{_DAY}[Tt]{_TIME}",
    "time": f"^{_TIME}",
    "duration": "^P[^0-9]?(?:[0-9]{1,9}[^0-9]{1,2})+$",
}
"""What a value of a format must match besides. There was no year 0, and clocks count nanoseconds at the finest."""

_ONE = (
    "items",
    "additionalItems",
    "additionalProperties",
    "not",
    "contains",
    "propertyNames",
    "if",
    "then",
    "else",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_SEVERAL = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
MOST_LINKS = 16
"""References that are followed to see what a branch is."""


def enforceable(schema: Schema) -> Schema:
    """The same schema in other words."""
    return _reworded(schema, schema)


def _reworded(schema: Schema, root: Schema) -> Schema:
    if not isinstance(schema, dict):
        return schema
    new = {keyword: _inside(keyword, value, root) for keyword, value in schema.items()}
    if (pattern := _pattern(new)) is not None:
        _add(new, "pattern", pattern)
    branches = new.get("oneOf")
    if isinstance(branches, list) and _never_two(branches, root):
        _add(new, "anyOf", new.pop("oneOf"))
    return new


def _inside(keyword: str, value: Any, root: Schema) -> Any:
    if keyword in _SEVERAL and isinstance(value, list):
        return [_reworded(each, root) for each in value]
    if keyword in _ONE:
        return _reworded(value, root)
    if keyword in _NAMED and isinstance(value, dict):
        return {name: _reworded(each, root) for name, each in value.items()}
    return value


def _pattern(schema: Mapping[str, Any]) -> str | None:
    name = schema.get("format")
    return PATTERNS.get(name) if isinstance(name, str) else None


def _add(schema: dict[str, Any], keyword: str, value: Any) -> None:
    """Demand this as well."""
    if keyword not in schema:
        schema[keyword] = value
    else:
        schema["allOf"] = [*schema.get("allOf", ()), {keyword: value}]


def _never_two(branches: Sequence[Schema], root: Schema) -> bool:
    found = [_resolved(branch, root) for branch in branches]
    return all(_are_apart(one, other, root) for one, other in combinations(found, 2))


def _are_apart(one: Schema, other: Schema, root: Schema) -> bool:
    """Nothing matches both: by their types, by their values, or by a property that both need."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return False
    types, values = [set(_types(each)) for each in (one, other)], [_values(one), _values(other)]
    if types[0] and types[1] and not types[0] & types[1]:
        return True
    if values[0] is not None and values[1] is not None and not values[0] & values[1]:
        return True
    if types != [{"object"}, {"object"}]:
        return False
    return any(
        _are_apart(_property(one, name, root), _property(other, name, root), root)
        for name in _needed(one) & _needed(other)
    )


def _types(schema: Mapping[str, Any]) -> Iterator[str]:
    named = schema.get("type")
    for name in named if isinstance(named, list) else [named]:
        if isinstance(name, str):
            yield name
        if name in ("integer", "number"):  # 1 is both
            yield from ("integer", "number")


def _values(schema: Mapping[str, Any]) -> set[str] | None:
    """The only values there are, as JSON."""
    if "const" in schema:
        return {_written(schema["const"])}
    listed = schema.get("enum")
    return set(map(_written, listed)) if isinstance(listed, list) else None


def _written(value: Any) -> str:
    is_whole = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if is_whole else value, sort_keys=True)


def _needed(schema: Mapping[str, Any]) -> set[str]:
    needed = schema.get("required")
    return {name for name in needed if isinstance(name, str)} if isinstance(needed, list) else set()


def _property(schema: Mapping[str, Any], name: str, root: Schema) -> Schema:
    known = schema.get("properties")
    return _resolved(known.get(name), root) if isinstance(known, dict) else None


def _resolved(schema: Schema, root: Schema) -> Schema:
    """What a reference within the schema stands for. One with company stays as it is."""
    for _ in range(MOST_LINKS):
        if not isinstance(schema, dict) or set(schema) - {"description", "title"} != {"$ref"}:
            return schema
        schema = _target(schema["$ref"], root)
    return None


def _target(reference: Any, root: Schema) -> Schema:
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    found = root
    for part in reference[2:].split("/"):
        if not isinstance(found, dict):
            return None
        found = found.get(part.replace("~1", "/").replace("~0", "~"))
    return found
