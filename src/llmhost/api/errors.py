"""Errors on the wire: OpenAI's body, always with all four keys, whoever raised."""

import math
import re
from typing import Any

import msgspec
from litestar.exceptions import HTTPException, ValidationException

from llmhost.api.bill_facts import BUDGET, REVIEW, remaining_usd
from llmhost.core.errors import (
    BadRequest,
    ContentRefused,
    HeldForReview,
    InvalidValue,
    LlmhostError,
    MethodNotAllowed,
    NotFound,
    QuotaExhausted,
    RateLimited,
    RequestTooLarge,
    ShuttingDown,
    Unauthenticated,
)

INTERNAL = LlmhostError("The server failed while it handled this request. Its log has the reason.")

_BY_STATUS: dict[int, type[LlmhostError]] = {
    401: Unauthenticated,
    413: RequestTooLarge,
    429: RateLimited,
}

_WITHOUT_V1 = ("/chat/", "/completions", "/embeddings", "/responses", "/models", "/messages")
"""Where clients arrive whose base URL lacks its /v1."""

LONGEST_MESSAGE = 4000
"""In characters: what was sent is repeated in messages, and may have been megabytes."""

_BODY = "data"
"""litestar's name for a body, where the fault is not in the value of one field."""
_FIELD = re.compile(r"field `(.+?)`")

_LEFT_EARLY = "client disconnected prematurely"
"""litestar's words for a body that its client did not send to the end: no fault of ours, and nobody is left to hear."""


def known_error(error: BaseException, asked: str = "this") -> LlmhostError:
    """Whatever was raised, as one of ours; what nobody thought about is a plain 500. `asked` is a method and a path."""
    if isinstance(error, LlmhostError):
        return error
    if isinstance(error, HTTPException):
        if error.status_code == 404:
            return NotFound(_no_route(asked))
        if error.status_code == 405:
            return _not_allowed(asked, error)
        if error.status_code in _BY_STATUS:
            return _BY_STATUS[error.status_code](_sentence(error))
        if isinstance(error, ValidationException) and (found := _wrong_parameter(error)):
            return found
        if error.status_code < 500 or error.detail == _LEFT_EARLY:
            return BadRequest(_sentence(error))
    return INTERNAL


def error_object(error: LlmhostError) -> dict[str, Any]:
    """With `review_id` where a human is to decide."""
    inner = {
        "message": shortened(error.message),
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    if (review_id := review_of(error)) is not None:
        inner["review_id"] = review_id
    return {"error": inner}


def review_of(error: LlmhostError) -> str | None:
    """The review that an error waits for."""
    return error.review_id if isinstance(error, ContentRefused | HeldForReview) else None


def error_body(error: LlmhostError) -> bytes:
    return msgspec.json.encode(error_object(error))


def error_headers(error: LlmhostError) -> dict[str, str]:
    """What a client needs to decide whether to try again, and when."""
    headers = {}
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = ", ".join(error.allowed)
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["retry-after-ms"] = str(max(1, math.ceil(error.retry_after_s * 1000)))
    if isinstance(error, ShuttingDown):
        headers["connection"] = "close"
    if isinstance(error, QuotaExhausted):
        headers[BUDGET] = remaining_usd(error.remaining_nano)
    if (review_id := review_of(error)) is not None:
        headers[REVIEW] = review_id
    if error.status in (409, 429) or error.status >= 500:
        headers["x-should-retry"] = "true" if error.retry_after_s is not None else "false"
    return headers


def shortened(message: str) -> str:
    """Its beginning, which says what is wrong, and its end, which says what to do."""
    if len(message) <= LONGEST_MESSAGE:
        return message
    half = LONGEST_MESSAGE // 2
    return f"{message[:half]} ... {message[-half:]}"


def _no_route(asked: str) -> str:
    method, _, path = asked.partition(" ")
    if path.startswith(_WITHOUT_V1):
        return f"There is no route {path}. Did you mean /v1{path}? The base URL of clients ends with /v1."
    return f"There is no route {method} {path}. GET /schema describes those that are here."


def _not_allowed(asked: str, error: HTTPException) -> MethodNotAllowed:
    allowed = (error.headers or {}).get("allow", "")
    methods = tuple(sorted({"OPTIONS", *filter(None, allowed.split(", "))} - {"asgi"}))
    return MethodNotAllowed(
        f"{asked.partition(' ')[0]} is not allowed here; use {' or '.join(m for m in methods if m != 'OPTIONS')}.",
        allowed=methods,
    )


def _wrong_parameter(error: ValidationException) -> InvalidValue | None:
    """What the framework says of the first parameter of a query or path, or field of a body, that it can't read."""
    extra: Any = error.extra
    if not isinstance(extra, list) or not extra or "key" not in extra[0]:
        return None
    name, why = extra[0]["key"], str(extra[0].get("message", ""))
    if name == _BODY:
        field = _FIELD.search(why)
        name = field[1] if field else None
    why = why.replace("`", "'")
    return InvalidValue(f"{name}: {why}" if name else why, param=name)


def _sentence(error: HTTPException) -> str:
    detail = error.detail or str(error.status_code)
    extra = f" {error.extra}" if error.extra else ""
    return f"{detail}{extra}"


def forget_frames(error: BaseException) -> None:
    """Once an error is answered: its frames hold the request, which holds the error, and so all would stay in memory
    until Python looks for cycles, which it does seldom."""
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
