"""What is said of one route in the OpenAPI document."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"

Struct = type[msgspec.Struct]

ANSWERED = (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 503, 504)
"""How any route that asks a model may refuse or fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One in the path, the query or a header."""

    name: str
    place: str = "query"
    about: str = ""
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    is_required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one route, under every path that clients know it by."""

    paths: tuple[str, ...]
    summary: str
    tag: str
    method: str = "post"
    about: str = ""
    body: Struct | None = None
    required: tuple[str, ...] = ()
    """Fields that a body must have, though its struct takes it without them to say so in our own words."""
    body_name: str | None = None
    """Where other operations have the same struct with other fields required."""
    body_type: str = JSON
    more_of_body: Mapping[str, Any] | None = None
    """A schema that the body also fits; the whole of it where there is no struct."""
    answer: Any = None
    """A type, or None where the answer is no JSON."""
    answer_type: str = JSON
    status: int = 200
    streams: bool = False
    """It may answer with server-sent events."""
    stream_type: str = EVENTS
    may_wait: bool = False
    """What is sent may be left to a reviewer; then the answer is fetched later."""
    parameters: tuple[Parameter, ...] = ()
    refusals: tuple[int, ...] = ANSWERED
    is_anthropic: bool = False
    is_ollama: bool = False
    is_admin: bool = False


IDEMPOTENCY = Parameter(
    name="idempotency-key",
    place="header",
    about="Repeats of one request have the same key, and run once.",
    schema={"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
)
