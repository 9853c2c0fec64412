"""What a field may be, found in the structs that read bodies: for a refusal to say it."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from msgspec import inspect

_STEP = re.compile(r"[^.\[\]]+|\[[^\]]*\]")


@cache
def choices(shape: Any, path: str) -> tuple[str, ...]:
    """The words that `path` may be, such as `tools[].type`; empty where it has no list of them."""
    kinds = list(_flat(inspect.type_info(shape)))
    for step in _STEP.findall(path):
        kinds = [found for kind in kinds for found in _within(kind, step)]
    return tuple(dict.fromkeys(word for kind in kinds for word in _words(kind)))


def _flat(kind: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(kind, inspect.Metadata):
        yield from _flat(kind.type)
    elif isinstance(kind, inspect.UnionType):
        for one in kind.types:
            yield from _flat(one)
    else:
        yield kind


def _within(kind: inspect.Type, step: str) -> Iterator[inspect.Type]:
    if step.startswith("["):
        if isinstance(kind, inspect.ListType | inspect.VarTupleType):
            yield from _flat(kind.item_type)
        elif isinstance(kind, inspect.DictType):
            yield from _flat(kind.value_type)
    elif isinstance(kind, inspect.StructType):
        for field in kind.fields:
            if field.encode_name == step:
                yield from _flat(field.type)


def _words(kind: inspect.Type) -> Iterator[str]:
    if isinstance(kind, inspect.LiteralType):
        yield from map(str, kind.values)
    elif isinstance(kind, inspect.EnumType):
        yield from (str(one.value) for one in kind.cls)
