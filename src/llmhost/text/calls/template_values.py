"""What the parsers that an answer's template names make of a text, and how their values become a call.

The parsers and transforms are those of transformers' `response_template`; a value that can't be made is a ValueError.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import regex

from llmhost.text.calls.pieces import whole_characters
from llmhost.text.calls.tagged import as_json, kinds_of

Args = Mapping[str, Any]
Call = tuple[str, str]
"""A name, and arguments as JSON."""

MOST_SECONDS = 0.05
"""That one search may take: patterns come with a model's files, and some take for ever."""
_PLACEHOLDER = regex.compile(r"\{(\w+(?:\.\w+)*)\}")
TYPED = ("integer", "number", "boolean", "object", "array")
"""What a tool's schema may want a text to be read as."""


def parsed(text: str, parser: str, args: Args) -> Any:
    return PARSERS[parser](text, args)


def text_of(text: str, args: Args) -> str:
    return text.strip() if args.get("strip", True) else text


def _bool(text: str, args: Args) -> bool:
    return text_of(text, args).lower() in ("true", "1")


def _json(text: str, args: Args) -> Any:
    """JSON, with strings between marks of the model's own and bare keys where the template says so."""
    strings: list[str] = []

    def keep(found: Any) -> str:
        strings.append(found.group(1))
        return f"\x01{len(strings) - 1}\x02"

    working = text
    delimiters = args.get("string_delims") or ()
    if "\x01" in text or "\x02" in text:
        raise ValueError("it holds characters that stand for strings")
    for begin, end in delimiters:
        between = f"{regex.escape(begin)}(.*?){regex.escape(end)}"
        working = regex.sub(between, keep, working, flags=regex.DOTALL, timeout=MOST_SECONDS)
    if args.get("unquoted_keys"):
        working = regex.sub(r"(?<=[{,])(\w+):", r'"\1":', working, timeout=MOST_SECONDS)
    working = regex.sub("\x01(\\d+)\x02", lambda at: json.dumps(strings[int(at[1])]), working)
    try:
        return json.loads(working, parse_constant=_refuse)
    except ValueError:
        if args.get("allow_non_json"):
            return text_of(text, args)
        raise


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def inner(text: str, parser: Mapping[str, Any] | None) -> Any:
    if parser is None:
        return text
    return parsed(text, parser.get("name", "text"), parser.get("args", {}))


def _xml_inline(text: str, args: Args) -> dict[str, Any]:
    found: dict[str, Any] = {}
    several: set[str] = set()
    pattern = args["tag_pattern"]
    for tag in regex.finditer(pattern, text, flags=regex.DOTALL, timeout=MOST_SECONDS):
        groups = tag.groupdict()
        key = groups.get("key") or ""
        value = inner(groups.get("value") or "", args.get("value_parser"))
        if not args.get("merge_duplicates") or key not in found:
            found[key] = value
        elif key in several:
            found[key].append(value)
        else:
            several.add(key)
            found[key] = [found[key], value]
    return found


def _kv_lines(text: str, args: Args) -> dict[str, Any]:
    found = {}
    between = args.get("kv_sep", ":")
    for line in text.split(args.get("line_sep", "\n")):
        key, mark, value = text_of(line, args).partition(between)
        if mark:
            found[text_of(key, args)] = inner(text_of(value, args), args.get("value_parser"))
    return found


PARSERS: Mapping[str, Callable[[str, Args], Any]] = {
    "text": text_of,
    "int": lambda text, args: int(text_of(text, args)),
    "float": lambda text, args: float(text_of(text, args)),
    "bool": _bool,
    "json": _json,
    "xml-inline": _xml_inline,
    "kv-lines": _kv_lines,
}


def placed(transform: Any, known: Mapping[str, Any]) -> Any:
    """A transform with what its `{placeholders}` name in their places."""
    if isinstance(transform, dict):
        return {key: placed(each, known) for key, each in transform.items()}
    if isinstance(transform, list):
        return [placed(each, known) for each in transform]
    path = _PLACEHOLDER.fullmatch(transform) if isinstance(transform, str) else None
    if path is None:
        return transform
    value: Any = known
    for key in path[1].split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"there is no {path[1]}")
        value = value[key]
    return value


def check_transform(transform: Any) -> None:
    """Raises ValueError for a text in which a placeholder is only a part."""
    if isinstance(transform, dict | list):
        for each in transform.values() if isinstance(transform, dict) else transform:
            check_transform(each)
    elif isinstance(transform, str) and _PLACEHOLDER.sub("", transform, 1) not in ("", transform):
        raise ValueError(f"the transform {transform!r} has more in it than a placeholder")


def items_of(value: Any) -> list[dict[str, Any]]:
    """Raises ValueError for what is no list of objects."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("it is no list of objects")
    return value


def calls_in(value: Any, schemas: Mapping[str, Mapping[str, Any]]) -> list[Call]:
    """The calls of a part: one, or a list of them. Raises ValueError where there is none."""
    several = value if isinstance(value, list) else [value]
    return [_call(each, schemas) for each in several]


def _call(value: Any, schemas: Mapping[str, Mapping[str, Any]]) -> Call:
    function = value.get("function", value) if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError("it names no function")
    arguments = cast(dict[str, Any], function).get("arguments", {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments, parse_constant=_refuse)
    if not isinstance(arguments, dict):
        raise ValueError("its arguments are no object")
    kinds = kinds_of(schemas.get(name))
    made = {key: typed(each, kinds.get(key)) for key, each in arguments.items()}
    text = json.dumps(made, ensure_ascii=False, allow_nan=False)
    return whole_characters(name), whole_characters(text)


def typed(value: Any, kind: str | None) -> Any:
    """A text as what the tool's schema says, where it can be that."""
    if isinstance(value, list) and kind != "array":
        return [typed(each, kind) for each in value]
    if not isinstance(value, str) or kind not in TYPED:
        return value
    try:
        made = json.loads(as_json(value, kind), parse_float=_finite)
    except OverflowError:  # it has no place in JSON as what it would be read as
        return value
    return value if isinstance(made, str) else made


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise OverflowError(digits)
    return number
