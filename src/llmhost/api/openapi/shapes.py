"""JSON schemas of wire structs.

Bodies have fields that are looked at as text before anything is made of them, and fields that are required but may be
absent as far as their struct is concerned, so that their absence is told in our own words. Each struct gets a twin that
says what is meant, and msgspec describes the twin.
"""

import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta, Raw

from llmhost.api.openapi.operation import Struct

REF = "#/components/schemas/{name}"

FieldTypes = Mapping[tuple[Struct, str], Any]

_LARGEST = 2**63 - 1


class Shapes:
    """Twins of structs, made once each, and their schemas.

    `meant` has the fields that mean something else than their types say, `required` those that may not be absent.
    """

    def __init__(
        self,
        meant: FieldTypes,
        required: Mapping[Struct, tuple[str, ...]],
        names: Mapping[Struct, str],
    ) -> None:
        self._meant = meant
        self._required = required
        self._names = names
        self._twins: dict[str, tuple[Struct, Struct]] = {}

    def twin(
        self, shape: Struct, required: Iterable[str] | None = None, name: str | None = None
    ) -> Struct:
        """What describes a struct. Its fields in `required` are there and not null."""
        name = name or self._name_of(shape)
        if (made := self._twins.get(name)) is not None:
            assert made[0] is shape, f"{shape} and {made[0]} are both {name}"
            return made[1]
        needed = self._required.get(shape, ()) if required is None else tuple(required)
        fields = [self._field(shape, each, needed) for each in msgspec.structs.fields(shape)]
        config = shape.__struct_config__
        twin = msgspec.defstruct(
            name,
            fields,
            kw_only=True,
            namespace={"__doc__": shape.__doc__},
            forbid_unknown_fields=config.forbid_unknown_fields,
            tag_field=config.tag_field,
            tag=config.tag,
        )
        self._twins[name] = shape, twin
        return twin

    def _name_of(self, shape: Struct) -> str:
        return self._names.get(shape, shape.__name__.removeprefix("_").removeprefix("Wire"))

    def _field(
        self, shape: Struct, each: msgspec.structs.FieldInfo, required: tuple[str, ...]
    ) -> tuple[str, Any, Any]:
        meant = self.type_of(self._said(shape, each))
        if each.name in required:
            return each.encode_name, _without_null(meant), NODEFAULT
        if each.required:
            return each.encode_name, meant, NODEFAULT
        default = None if isinstance(each.default, Raw) else each.default
        if each.default_factory is not NODEFAULT:
            default = each.default_factory()
        return each.encode_name, meant, msgspec.field(default=default)

    def _said(self, shape: Struct, each: msgspec.structs.FieldInfo) -> Any:
        for owner in shape.__mro__:
            if (told := self._meant.get((owner, each.name))) is not None:
                return told if each.required else told | None
        return Any if each.type is Raw else each.type

    def type_of(self, given: Any) -> Any:
        """A type with the twins of its structs, and with the limits of what this server reads as an integer."""
        if isinstance(given, type) and issubclass(given, msgspec.Struct):
            return self.twin(given)
        if given is int:
            return Annotated[int, Meta(ge=-_LARGEST - 1, le=_LARGEST)]
        origin, parts = get_origin(given), get_args(given)
        if origin is Annotated:
            return Annotated[(self._bounded(parts[0], given.__metadata__), *given.__metadata__)]
        if origin in (Union, types.UnionType):
            return Union[tuple(self.type_of(part) for part in parts)]  # noqa: UP007 - made at run time
        if origin in (list, dict, tuple):
            return origin[tuple(p if p is ... else self.type_of(p) for p in parts)]
        return given

    def _bounded(self, given: Any, meta: tuple[Any, ...]) -> Any:
        if given is not int:
            return self.type_of(given)
        has_least = any(each.ge is not None or each.gt is not None for each in meta)
        has_most = any(each.le is not None or each.lt is not None for each in meta)
        least = None if has_least else -_LARGEST - 1
        return Annotated[int, Meta(ge=least, le=None if has_most else _LARGEST)]

    def schemas(self, shapes: Iterable[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The schema of each type, and of all that they refer to by name."""
        found, components = msgspec.json.schema_components(list(shapes), ref_template=REF)
        return list(found), components


def _without_null(given: Any) -> Any:
    if get_origin(given) in (Union, types.UnionType):
        return Union[tuple(p for p in get_args(given) if p is not type(None))]  # noqa: UP007
    return given
