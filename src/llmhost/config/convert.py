"""One value at a time from TOML or text to the type of its key, with errors that a person can act on.

Converting key by key is what lets an error name table, key and value: msgspec's own path of a whole file reads
`$.models[...]`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from llmhost.config.schema.section import Section
from llmhost.core.errors import ConfigError

_WORDS = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Place:
    """A table in a file, as errors call it."""

    file: str
    table: str

    def __str__(self) -> str:
        return f"{self.file}: [{self.table}]"


@cache
def key_types(section: type[Section]) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(section)}


def from_toml(value: Any, type_: Any, where: str) -> Any:
    """A value as TOML gives it. `where` names the key in errors, such as `models.toml: [server] port`."""
    try:
        converted = msgspec.convert(value, type_)
    except msgspec.ValidationError:
        raise ConfigError(_refusal(value, type_, where)) from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ConfigError(_refusal(value, type_, where))
    return converted


def from_text(text: str, type_: Any, where: str) -> Any:
    """A value from an environment variable: lists are separated by commas, and nothing at all means absent."""
    plain, is_optional = _strip(type_)
    if get_origin(plain) is tuple:
        return from_toml(_split(text), type_, where)
    if text == "":
        if is_optional:
            return None
        raise ConfigError(
            f"{where} is empty but must be {describe(type_)}; unset it for the default."
        )
    try:
        converted = msgspec.convert(text, type_, strict=False)
    except msgspec.ValidationError:
        raise ConfigError(_refusal(text, type_, where)) from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ConfigError(_refusal(text, type_, where))
    return converted


def convert_keys(
    table: Any, section: type[Section], place: Place, elsewhere: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The keys that `table` has, converted. `elsewhere` maps keys of other tables to those, for hints."""
    if not isinstance(table, dict):
        raise ConfigError(f"{place} must be a table, not {table!r}.")
    types = key_types(section)
    for key in table:
        if key not in types:
            raise ConfigError(
                f"{place} has no key {key!r}.{_hint(key, table[key], types, elsewhere)}"
            )
    return {key: from_toml(value, types[key], f"{place} {key}") for key, value in table.items()}


def nearest(word: str, known: Any) -> str | None:
    close = get_close_matches(word, list(known), n=1)
    return close[0] if close else None


def describe(type_: Any) -> str:
    """`a whole number from 0 to 65535`, `one of "text", "json"`: what a key takes, for errors and documents."""
    plain, _ = _strip(type_)
    if get_origin(plain) is Annotated:
        base, *metas = get_args(plain)
        return " ".join([_WORDS[base], *filter(None, map(_bounds, metas))])
    if get_origin(plain) is Literal:
        return "one of " + ", ".join(json.dumps(choice) for choice in get_args(plain))
    if get_origin(plain) is tuple:
        return "a list of texts in quotes"
    return _WORDS.get(plain, "a table")


def _refusal(value: Any, type_: Any, where: str) -> str:
    shown = json.dumps(value, default=str, ensure_ascii=False)
    message = f"{where} is {shown} but must be {describe(type_)}."
    plain, _ = _strip(type_)
    if isinstance(value, str) and get_origin(plain) is Literal:
        close = nearest(value.lower(), [str(choice) for choice in get_args(plain)])
        return f"{message} Did you mean {json.dumps(close)}?" if close else message
    if plain is str and isinstance(value, int | float) and not isinstance(value, bool):
        return f'{message} Write "{value}".'
    return message


def _strip(type_: Any) -> tuple[Any, bool]:
    """The type without its `| None`, and whether it had one."""
    if get_origin(type_) in (Union, UnionType):
        rest = [part for part in get_args(type_) if part is not NoneType]
        return rest[0], len(rest) < len(get_args(type_))
    return type_, False


def _bounds(meta: msgspec.Meta) -> str:
    if meta.ge is not None and meta.le is not None:
        return f"from {meta.ge} to {meta.le}"
    if meta.gt is not None and meta.le is not None:
        return f"above {meta.gt} and up to {meta.le}"
    if meta.gt is not None:
        return f"above {meta.gt}"
    return f"of at least {meta.ge}" if meta.ge is not None else ""


def _split(text: str) -> list[str]:
    if text.startswith("["):
        try:
            whole = json.loads(text)
        except ValueError:
            pass  # a regular expression may begin like a JSON list
        else:
            return [str(part) for part in whole]
    return [part for part in (part.strip() for part in text.split(",")) if part]


def _hint(
    key: str, value: Any, types: Mapping[str, Any], elsewhere: Mapping[str, str] | None
) -> str:
    if close := nearest(key, types):
        return f" Did you mean {close!r}?"
    if elsewhere and key in elsewhere:
        return f" It belongs in [{elsewhere[key]}]."
    if isinstance(value, dict):
        return ' A model name with a dot in it needs quotes, such as [models."qwen2.5"].'
    return f" It has {', '.join(types)}."
