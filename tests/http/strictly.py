"""Holds an answer against the struct that describes it in the OpenAPI document, and takes nothing beside."""

from typing import Any

import msgspec

from llmhost.api.openapi.shapes import Shapes


def strictly(shape: Any, answer: bytes) -> Any:
    """The answer, which has all that `shape` says and nothing else."""
    return msgspec.json.decode(answer, type=_closed(shape))


def _closed(shape: Any) -> Any:
    return ClosedShapes({}, {}, {}).twin(shape)


class ClosedShapes(Shapes):
    """Twins that take no more than what is described."""

    def twin(self, shape: Any, required: Any = None, name: Any = None) -> Any:
        open_twin = super().twin(shape, required, name)
        fields = [
            (each.encode_name, each.type, msgspec.NODEFAULT if each.required else each.default)
            for each in msgspec.structs.fields(open_twin)
        ]
        config = open_twin.__struct_config__
        return msgspec.defstruct(
            open_twin.__name__,
            fields,
            kw_only=True,
            forbid_unknown_fields=True,
            tag_field=config.tag_field,
            tag=config.tag,
        )
