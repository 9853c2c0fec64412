"""How the APIs that are served here say what every route has to say: errors, silence, and the id of a request.

Found by the path, because refusals are said before a route is reached, too.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar.types import Scope

from llmhost.api.errors import error_object, shortened
from llmhost.api.limit_headers import anthropic_limit_headers
from llmhost.core.errors import (
    ContextTooLong,
    LlmhostError,
    Overloaded,
    QuotaExhausted,
    UnknownModel,
    UnsupportedParameter,
)
from llmhost.tenants.refusals import Allowances

ANTHROPIC_PATH = "/v1/messages"
OLLAMA_PATH = "/api/"


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API's ways."""

    error: Callable[[LlmhostError, str | None], dict[str, Any]]
    """A refusal or failure of the request with this id, as a body."""
    event: bytes
    """What stands before an error amid a stream."""
    heartbeat: bytes
    """An event that fills silence."""
    id_header: str | None = None
    """Another name of x-request-id."""
    org_header: str | None = None
    """What says whose key it is."""
    limits: Callable[[Allowances], dict[str, str]] | None = None
    """Headers of limits, beside those that all routes have."""
    event_end: bytes = b"\n\n"
    """What stands behind such an error."""

    def error_body(self, error: LlmhostError, request_id: str | None = None) -> bytes:
        return msgspec.json.encode(self.error(error, request_id))

    def error_event(self, error: LlmhostError, request_id: str | None = None) -> bytes:
        return self.event + self.error_body(error, request_id) + self.event_end


def dialect_of(scope: Scope) -> Dialect:
    return dialect_of_path(scope["path"])


def dialect_of_path(path: str) -> Dialect:
    if path.startswith(OLLAMA_PATH):
        return OLLAMA_CHAT if path.startswith(f"{OLLAMA_PATH}chat") else OLLAMA
    is_anthropic = path.startswith(ANTHROPIC_PATH) and path[len(ANTHROPIC_PATH) :][:1] in ("", "/")
    return ANTHROPIC if is_anthropic else OPENAI


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


def anthropic_type(error: type[LlmhostError]) -> str:
    """Anthropic's name for a kind of error."""
    if issubclass(error, QuotaExhausted):
        return "billing_error"
    if issubclass(error, Overloaded):
        return "overloaded_error"
    usual = "api_error" if error.status >= 500 else "invalid_request_error"
    return _ANTHROPIC_TYPES.get(error.status, usual)


def anthropic_error(error: LlmhostError, request_id: str | None) -> dict[str, Any]:
    """`details.error_code` is where Anthropic's clients look for what tells errors of one type apart."""
    said: dict[str, Any] = {"type": anthropic_type(type(error)), "message": _message(error)}
    facts = {"error_code": _code(error), "param": error.param and _named(error.param)}
    if details := {name: fact for name, fact in facts.items() if fact is not None}:
        said["details"] = details
    return {"type": "error", "error": said, "request_id": request_id}


def _code(error: LlmhostError) -> str | None:
    """Clients that would have the server keep their conversation send all of it themselves where they read this."""
    if isinstance(error, UnsupportedParameter) and error.param == "thread":
        return "thread_unsupported_request"
    return error.code


def _message(error: LlmhostError) -> str:
    """Agents find a prompt that is too long by Anthropic's words, and make it shorter."""
    if isinstance(error, ContextTooLong):
        return (
            f"prompt is too long: {error.prompt_tokens} tokens > {error.limit_tokens - 1} maximum"
        )
    return _named(shortened(error.message))


def _named(text: str) -> str:
    """A schema is found out to be wrong where it is OpenAI's field already."""
    return text.replace(".function.parameters", ".input_schema")


def ollama_error(error: LlmhostError, _: str | None) -> dict[str, Any]:
    """Clients tell errors apart by their status and by words of Ollama's, which come first."""
    message = shortened(error.message)
    if isinstance(error, UnknownModel):
        message = f"model not found: {message}"
    if isinstance(error, UnsupportedParameter) and error.param == "tools":
        message = (
            "this model does not support tools: how it writes calls is not known. The operator can name its format with"
            " tool_format in models.toml."
        )
    return {"error": message}


OPENAI = Dialect(
    error=lambda error, _: error_object(error), event=b"data: ", heartbeat=b": keep-alive\n\n"
)
ANTHROPIC = Dialect(
    error=anthropic_error,
    event=b"event: error\ndata: ",
    heartbeat=b'event: ping\ndata: {"type":"ping"}\n\n',
    id_header="request-id",
    org_header="anthropic-organization-id",
    limits=lambda allowances: anthropic_limit_headers(allowances, time.time_ns()),
)


def _ollama(said: bytes) -> Dialect:
    """Its lines are objects of one shape, and silence is one that says nothing."""
    beat = b'{"model":"","created_at":"1970-01-01T00:00:00Z",%s,"done":false}\n' % said
    return Dialect(error=ollama_error, event=b"", heartbeat=beat, event_end=b"\n")


OLLAMA = _ollama(b'"response":""')
OLLAMA_CHAT = _ollama(b'"message":{"role":"assistant","content":""}')
