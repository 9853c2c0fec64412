"""The schema in words: documentation of each key, its value and origin, and the JSON schema.

The words are the attribute docstrings of `config.schema`. Python drops those when it compiles, so they are read
from the source: only for `llmhost config`, never while serving.
"""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import msgspec

from llmhost.config import schema
from llmhost.config.convert import describe, key_types
from llmhost.config.load import LoadedSettings, Origin, walk
from llmhost.config.schema import Settings
from llmhost.config.schema.engines import ENGINE_OPTIONS
from llmhost.config.schema.models import MODEL_TABLES
from llmhost.config.schema.section import Section


@dataclass(frozen=True, slots=True)
class Explained:
    """One key: what it is set to, by what, and what it means."""

    key: str
    value: Any
    origin: Origin
    takes: str
    doc: str


def key_docs() -> dict[str, dict[str, str]]:
    """Struct name to key to docstring."""
    return {
        node.name: _attribute_docs(node)
        for module in _modules()
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef)
    }


def explain(loaded: LoadedSettings) -> list[Explained]:
    """Every key in the order of the file."""
    docs = key_docs()
    return [
        Explained(
            key=dotted,
            value=_value(loaded.settings, dotted, section, key),
            origin=loaded.origins[dotted],
            takes=describe(key_types(section)[key]),
            doc=docs[section.__name__][key],
        )
        for dotted, section, key in walk(loaded.settings)
    ]


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of models.toml, for editors. [models.NAME.options] depends on the engine."""
    docs = key_docs()
    _, parts = msgspec.json.schema_components(
        [Settings, *ENGINE_OPTIONS.values()], ref_template="#/$defs/{name}"
    )
    for name, part in parts.items():
        for key, doc in docs.get(name, {}).items():
            # A reference may not have siblings in older readers, but 2020-12 allows them.
            part["properties"][key]["description"] = doc
    model = parts["ModelSpec"]
    model["allOf"] = [
        {
            "if": {"properties": {"engine": {"const": engine}}, "required": ["engine"]},
            "then": {"properties": {"options": {"$ref": f"#/$defs/{options.__name__}"}}},
        }
        for engine, options in ENGINE_OPTIONS.items()
    ]
    root = parts.pop("Settings")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": parts}


def _modules() -> Iterator[ModuleType]:
    yield schema
    for part in iter_modules(schema.__path__, f"{schema.__name__}."):
        yield import_module(part.name)


def _attribute_docs(node: ast.ClassDef) -> dict[str, str]:
    docs = {}
    for key, text in zip(node.body, node.body[1:], strict=False):
        match key, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(doc))),
            ):
                docs[name] = inspect.cleandoc(doc)
    return docs


def _value(settings: Settings, dotted: str, section: type[Section], key: str) -> Any:
    if not dotted.startswith("models."):
        return getattr(getattr(settings, dotted.partition(".")[0]), key)
    tail = _TAILS.get(section, f".{key}").format(key)
    spec = settings.models[dotted.removeprefix("models.").removesuffix(tail)]
    if section in ENGINE_OPTIONS.values():
        default = getattr(section(), key)
        return spec.options.get(key, default)
    for name, table in MODEL_TABLES.items():
        if section is table:
            return getattr(getattr(spec, name), key)
    return getattr(spec, key)


_TAILS: dict[type[Section], str] = {
    **{table: f".{name}.{{}}" for name, table in MODEL_TABLES.items()},
    **dict.fromkeys(ENGINE_OPTIONS.values(), ".options.{}"),
}
