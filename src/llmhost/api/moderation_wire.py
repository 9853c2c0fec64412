"""Bodies of /v1/moderations, checked at the edge: OpenAI's, of which texts are judged and images refused by name."""

from typing import Annotated

import msgspec
from msgspec import Meta

from llmhost.api.bodies import MAX_MODEL_CHARS, MAX_TIMEOUT_MS
from llmhost.api.loose import read_body
from llmhost.core.errors import InvalidValue, MissingParameter, UnsupportedParameter
from llmhost.core.request import GenerationRequest, Kind

MODERATIONS_PATH = "/v1/moderations"
MAX_TEXTS = 2048


class ModerationPart(msgspec.Struct, frozen=True):
    """A part of one input: a text. Images are refused."""

    type: str
    text: str | None = None


class ModerationBody(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/moderations. Every field may be null, which means absent."""

    input: str | list[str | ModerationPart] | None = None
    model: Annotated[str, Meta(max_length=MAX_MODEL_CHARS)] | None = None
    priority: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    timeout_ms: Annotated[int, Meta(ge=1, le=MAX_TIMEOUT_MS)] | None = None
    user: str | None = None
    include_cost: bool | None = None


def parse_moderation(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, None]:
    """Without a `model` the request has none yet: who asks decides which there is. Raises BadRequest."""
    body = read_body(raw, ModerationBody)
    request = GenerationRequest(
        request_id=request_id,
        kind=Kind.MODERATION,
        model=body.model or "",
        prompts=_texts(body.input),
        priority=body.priority or 0,
        timeout_ms=body.timeout_ms,
        client_request_id=client_id,
        user=body.user,
        include_cost=bool(body.include_cost),
    )
    return request, None


def _texts(given: str | list[str | ModerationPart] | None) -> tuple[str, ...]:
    """One text for each result: a list of strings has as many, and the parts of one input are judged together."""
    if given is None:
        raise MissingParameter("input")
    if isinstance(given, str):
        texts = [given]
    elif given and all(isinstance(one, ModerationPart) for one in given):
        texts = ["\n".join(_text(one, f"input[{place}]") for place, one in enumerate(given))]
    else:
        texts = [_string(one, f"input[{place}]") for place, one in enumerate(given)]
    if not 0 < len(texts) <= MAX_TEXTS:
        raise InvalidValue(
            f"'input' holds {len(texts)} texts; 1 to {MAX_TEXTS} are allowed in one request.",
            param="input",
        )
    for place, text in enumerate(texts):
        if not text.strip():
            at = "input" if len(texts) == 1 else f"input[{place}]"
            raise InvalidValue("The text is empty: there is nothing to judge.", param=at)
    return tuple(texts)


def _text(part: str | ModerationPart, at: str) -> str:
    assert isinstance(part, ModerationPart)
    if part.type != "text":
        raise UnsupportedParameter(
            f"Input of type {part.type[:80]!r} is not supported; this server judges text.",
            param=f"{at}.type",
        )
    if part.text is None:
        raise MissingParameter(f"{at}.text")
    return part.text


def _string(one: str | ModerationPart, at: str) -> str:
    if not isinstance(one, str):
        raise InvalidValue(
            "'input' mixes texts and parts. Send texts, or the parts of one input.", param=at
        )
    return one
