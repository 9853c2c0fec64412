"""The OpenAPI document: what litestar knows of its routes, and the operations of the others, in one."""

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from llmhost.api.dialect import ANTHROPIC_PATH, OLLAMA_PATH
from llmhost.api.openapi.answers import ErrorAnswer
from llmhost.api.openapi.meant import MEANT, NAMES, REQUIRED
from llmhost.api.openapi.message_answers import MessageError
from llmhost.api.openapi.ollama_answers import OllamaError
from llmhost.api.openapi.operation import IDEMPOTENCY, JSON, Operation, Parameter
from llmhost.api.openapi.operations import BARE, KEYED, TAKEN, TOLD
from llmhost.api.openapi.queries import QUERIES
from llmhost.api.openapi.shapes import Shapes

Json = dict[str, Any]

OPEN = frozenset({"/health", "/ready", "/metrics", "/v1/billing/public-key", "/", "/api/version"})
"""Routes that ask nobody who they are."""
ADMIN = re.compile(r"^/admin/|^/v1/(un)?load_lora_adapter$")
HOLDER: list[Json] = [{"bearer": []}, {"apiKey": []}]
ADMINISTRATORS = (401, 403, 404, 408, 409, 413, 422, 429, 500, 503)
"""How a route of litestar's may refuse, beside 400."""

WAITING: Json = {
    "description": "A reviewer decides first: ask for the answer at `location`, after `retry-after`.",
    "content": {JSON: {"schema": {"$ref": "#/components/schemas/ReviewObject"}}},
}


def document_of(own: Json, operations: Iterable[Operation]) -> Json:
    """The whole document; `own` is litestar's."""
    known = tuple(operations)
    schemas, components = _schemas(known)
    paths: Json = {path: _refusing(path, item) for path, item in own["paths"].items()}
    _tell(paths, schemas)
    for operation in known:
        for at, path in enumerate(operation.paths):
            item = paths.setdefault(path, {})
            assert operation.method not in item, f"{operation.method} {path} is described twice"
            described = _described(operation, schemas, is_alias=at > 0)
            item[operation.method] = {"operationId": _id(path, operation.method), **described}
    theirs: Json = own.get("components", {})
    both = components.keys() & theirs.get("schemas", {}).keys()
    assert not both, f"two schemas of one name: {sorted(both)}"
    return {
        **own,
        "paths": dict(sorted(paths.items())),
        "components": {
            **theirs,
            "schemas": dict(sorted({**theirs.get("schemas", {}), **components}.items())),
            "responses": _refusals(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _tell(paths: Json, schemas: "Schemas") -> None:
    """Say of litestar's routes what their handlers keep to themselves."""
    for path, item in paths.items():
        for method, operation in item.items():
            place = f"{method} {path}"
            told = TOLD.get(place, TOLD.get(path) if len(item) == 1 else None)
            if told is not None:
                operation["responses"]["200"]["content"] = {JSON: {"schema": schemas[told]}}
            if (taken := TAKEN.get(place)) is not None:
                kind, shape = taken
                content = {kind: {"schema": schemas[shape, None]}}
                operation["requestBody"] = {"required": place not in BARE, "content": content}


def _id(path: str, method: str) -> str:
    """As litestar's are: what programs that are made of the document call it."""
    words = re.findall(r"[A-Za-z0-9]+", path)
    return "".join(word.title() for word in (*words, method))


Schemas = Mapping[Any, Json]
"""By the type of an answer, and by (struct, name) of a body."""


def _schemas(operations: Sequence[Operation]) -> tuple[Schemas, Json]:
    """The schema of each body and answer, and the components that they refer to."""
    shapes = Shapes(MEANT, REQUIRED, NAMES)
    asked: dict[Any, Any] = {}
    for operation in operations:
        if operation.body is not None:
            name = operation.body_name
            asked[operation.body, name] = shapes.twin(operation.body, operation.required, name)
        if operation.answer is not None:
            asked[operation.answer] = shapes.type_of(operation.answer)
    for told in (ErrorAnswer, MessageError, OllamaError, *TOLD.values()):
        asked[told] = shapes.type_of(told)
    for _, body in TAKEN.values():
        asked[body, None] = shapes.twin(body)
    found, components = shapes.schemas(asked.values())
    return dict(zip(asked, found, strict=True)), components


def _described(operation: Operation, schemas: Schemas, *, is_alias: bool) -> Json:
    made: Json = {
        "summary": operation.summary,
        "tags": [operation.tag],
        "security": HOLDER,
        "responses": {
            str(operation.status): _answer(operation, schemas),
            **({"202": WAITING} if operation.may_wait else {}),
            **{
                str(status): {"$ref": f"#/components/responses/{_name(status, operation)}"}
                for status in operation.refusals
            },
        },
    }
    if operation.about:
        made["description"] = operation.about
    if is_alias:
        made["description"] = f"The same as `{operation.paths[0]}`."
    if operation.parameters:
        made["parameters"] = [_parameter(each) for each in operation.parameters]
    if (schema := _body(operation, schemas)) is not None:
        content = {operation.body_type: {"schema": schema}}
        made["requestBody"] = {"required": True, "content": content}
    return made


def _body(operation: Operation, schemas: Schemas) -> Json | None:
    more = operation.more_of_body
    if operation.body is None:
        return None if more is None else dict(more)
    schema = schemas[operation.body, operation.body_name]
    return schema if more is None else {"allOf": [schema, dict(more)]}


def _answer(operation: Operation, schemas: Schemas) -> Json:
    content: Json = {}
    if operation.answer is not None:
        content[operation.answer_type] = {"schema": schemas[operation.answer]}
    elif operation.answer_type != JSON:
        content[operation.answer_type] = {"schema": {"type": "string"}}
    if operation.streams:
        content[operation.stream_type] = {"schema": {"type": "string"}}
    return {"description": "The answer.", **({"content": content} if content else {})}


def _parameter(given: Parameter) -> Json:
    made: Json = {"name": given.name, "in": given.place, "schema": dict(given.schema)}
    if given.is_required or given.place == "path":
        made["required"] = True
    return {**made, "description": given.about} if given.about else made


def _name(status: int, operation: Operation) -> str:
    kind = "Message" if operation.is_anthropic else "Ollama" if operation.is_ollama else "Error"
    return f"{kind}{status}"


STATUSES = (400, 401, 403, 404, 405, 408, 409, 413, 422, 429, 500, 503, 504)


def _refusals() -> Json:
    """What is said with each status, by each API."""
    made: Json = {}
    shapes = {"Error": "ErrorAnswer", "Message": "MessageError", "Ollama": "OllamaError"}
    for prefix, shape in shapes.items():
        for status in STATUSES:
            made[f"{prefix}{status}"] = {
                "description": HTTPStatus(status).phrase,
                "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{shape}"}}},
            }
    return made


def _refusing(path: str, item: Json) -> Json:
    """Litestar's operations with our errors and who may ask."""
    made: Json = {}
    is_anthropic = path.startswith(f"{ANTHROPIC_PATH}/")
    kind = "Ollama" if path.startswith(OLLAMA_PATH) else "Message" if is_anthropic else "Error"
    for method, operation in item.items():
        succeeding = {s: r for s, r in operation["responses"].items() if s.startswith("2")}
        refusing = {
            str(status): {"$ref": f"#/components/responses/{kind}{status}"}
            for status in (400, *ADMINISTRATORS)
        }
        security = [] if path in OPEN else [{"bearer": []}] if ADMIN.match(path) else HOLDER
        is_keyed = f"{method} {path}" in KEYED
        if more := (*QUERIES.get(path, ()), *((IDEMPOTENCY,) if is_keyed else ())):
            known = operation.get("parameters", [])
            operation = {**operation, "parameters": [*known, *map(_parameter, more)]}
        made[method] = {
            **operation,
            "responses": {**succeeding, **refusing},
            "security": security,
        }
    return made
