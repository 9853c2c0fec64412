"""POST /v1/estimate: what a request would take and may cost, without running it.

It takes the body of any route that runs models, tells them apart by their fields or by `endpoint`, and refuses what
that route refuses.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from llmhost.api.bill_facts import remaining_usd
from llmhost.api.decision_wire import DECISIONS_PATH, parse_decision
from llmhost.api.door import ClientGone, bearer, is_small, read_all, send_whole
from llmhost.api.errors import forget_frames
from llmhost.api.gatekeeper import Identify, vouch
from llmhost.api.loose import NULL, Raw, read_body, said
from llmhost.api.messages_wire import parse_messages
from llmhost.api.moderation_wire import MODERATIONS_PATH, parse_moderation
from llmhost.api.openai import INLINE_BYTES, Parse, parse_chat, parse_completion
from llmhost.api.pooling import POOLING
from llmhost.api.responses.wire import parse_response
from llmhost.api.visit import Visit
from llmhost.core.caller import Caller
from llmhost.core.errors import InvalidValue, LlmhostError, MethodNotAllowed
from llmhost.core.request import GenerationRequest
from llmhost.core.units import nano_to_dollars
from llmhost.observe.logs import request_id
from llmhost.pipeline.estimate import Estimate
from llmhost.pipeline.processor import Processor
from llmhost.tenants.refusals import Allowances

PARSERS: Mapping[str, Parse] = {
    "/v1/chat/completions": parse_chat,
    "/v1/completions": parse_completion,
    "/v1/messages": parse_messages,
    "/v1/responses": parse_response,
    DECISIONS_PATH: parse_decision,
    MODERATIONS_PATH: parse_moderation,
    **{route.paths[0]: route.parse for route in POOLING},
}
"""By endpoint."""


class _Fields(msgspec.Struct, frozen=True, kw_only=True):
    """What tells bodies apart."""

    endpoint: str | None = None
    batch: bool | None = None
    messages: Raw = NULL
    prompt: Raw = NULL
    questions: Raw = NULL
    input: Raw = NULL
    documents: Raw = NULL
    text_1: Raw = NULL
    text_2: Raw = NULL
    queries: Raw = NULL
    data_1: Raw = NULL
    data_2: Raw = NULL


_TELLING = (
    ("/v1/chat/completions", ("messages",)),
    ("/v1/completions", ("prompt",)),
    (DECISIONS_PATH, ("questions",)),
    ("/v1/score", ("text_1", "text_2", "queries", "data_1", "data_2")),
    ("/v1/rerank", ("documents",)),
    ("/v1/embeddings", ("input",)),
)
"""An endpoint, and fields that are in no other's bodies; the first whose field is there is meant."""


def endpoint_of(raw: bytes) -> str:
    """The endpoint that a body is for. Raises BadRequest."""
    fields = read_body(raw, _Fields)
    if (named := fields.endpoint) is not None:
        path = f"/v1/{named.strip('/').removeprefix('v1/')}"
        if path in PARSERS:
            return path
        raise InvalidValue(
            f"'endpoint' is {named[:80]!r}; it may be {', '.join(PARSERS)}.", param="endpoint"
        )
    for path, names in _TELLING:
        if any(said(getattr(fields, name)) != b"null" for name in names):
            return path
    raise InvalidValue(
        "This body is none of a chat, a completion, embeddings, a ranking or scores. Send one of those, and name it in"
        f" 'endpoint': {', '.join(PARSERS)}.",
        param="endpoint",
    )


Read = Callable[[bytes, str, str | None], tuple[GenerationRequest, Any]]
"""Body, our id, the client's id -> what would be asked, and what its answer must know beside."""
Count = Callable[
    [GenerationRequest, Any, Mapping[str, str], Caller],
    Awaitable[tuple[dict[str, Any], Allowances]],
]
"""The request, what was read beside, headers and caller -> the answer."""


Prepare = Callable[[GenerationRequest, Any, Caller], Awaitable[tuple[GenerationRequest, Any]]]
"""A request, what was read beside, and who asks -> the same, with what the request goes on with."""


def estimate_route(
    processor: Processor,
    identify: Identify,
    max_body_bytes: int,
    prepares: Mapping[str, Prepare] = MappingProxyType({}),
) -> ASGIApp:
    """An ASGI app for the route. `prepares` are of endpoints whose bodies are not all of a request."""

    async def estimate(
        request: GenerationRequest,
        read: tuple[str, Any],
        headers: Mapping[str, str],
        caller: Caller,
    ) -> tuple[dict[str, Any], Allowances]:
        endpoint, beside = read
        if (prepare := prepares.get(endpoint)) is not None:
            request, _ = await prepare(request, beside, caller)
        made = await processor.inquiries.estimate(request, headers, caller)
        return _estimate_object(endpoint, request, made), made.allowances

    return counting_route(identify, _read, estimate, max_body_bytes)


def counting_route(identify: Identify, read: Read, count: Count, max_body_bytes: int) -> ASGIApp:
    """An ASGI app for a route that takes what models are asked, and asks none."""
    return _Route(identify, read, count, max_body_bytes).call


@dataclass(frozen=True, slots=True)
class _Route:
    identify: Identify
    read: Read
    count: Count
    max_body_bytes: int

    async def call(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == ScopeType.HTTP
        visit = Visit(scope)
        named = request_id.set(visit.request_id)
        try:
            await self._serve(visit, scope, receive, send)
        except ClientGone:
            pass
        except Exception as error:  # noqa: BLE001 - boundary: nothing may leave without a body
            await visit.fail(send, error)
            forget_frames(error)
        finally:
            request_id.reset(named)

    async def _serve(self, visit: Visit, scope: HTTPScope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"{scope['method']} is not allowed here; use POST.")
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        try:
            caller = await self.identify(bearer(scope), headers)
            visit.org = caller.org
        except LlmhostError as error:
            await visit.dismiss(send, receive, error, is_small=is_small(scope))
            forget_frames(error)
            return
        vouch(scope)
        raw = await read_all(scope, receive, self.max_body_bytes)
        given = (raw, visit.request_id, visit.client_id)
        is_large = len(raw) > INLINE_BYTES
        read = await asyncio.to_thread(self.read, *given) if is_large else self.read(*given)
        answer, allowances = await self.count(*read, headers, caller)
        body = msgspec.json.encode(answer)
        await send_whole(send, 200, body, {**visit.headers(), **visit.limit_headers(allowances)})


def _read(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, tuple[str, Any]]:
    endpoint = endpoint_of(raw)
    request, beside = PARSERS[endpoint](raw, request_id, client_id)
    if read_body(raw, _Fields).batch:
        request = replace(request, batch="-")
    return request, (endpoint, beside)


def _estimate_object(endpoint: str, request: GenerationRequest, made: Estimate) -> dict[str, Any]:
    remaining_nano = made.remaining_nano
    return {
        "object": "estimate",
        "model": request.model,
        "endpoint": endpoint,
        "prompt_tokens": made.prompt_tokens,
        "choices": made.choices,
        "max_output_tokens": made.output_tokens,
        "price_version": None if made.price is None else made.price.version,
        "currency": "USD",
        "min_cost_usd": nano_to_dollars(made.least_nano),
        "prompt_cost_usd": nano_to_dollars(made.prompt_nano),
        "max_cost_usd": nano_to_dollars(made.most_nano),
        "fits_budget": made.fits_budget,
        "budget_remaining_usd": None if remaining_nano is None else remaining_usd(remaining_nano),
    }
