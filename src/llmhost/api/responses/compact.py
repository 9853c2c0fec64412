"""POST /v1/responses/compact: a conversation, summarised by the model, as one item to go on with."""

from dataclasses import replace
from typing import Any

import msgspec
from litestar.types import ASGIApp, Send

from llmhost.api.bill_facts import bill_headers
from llmhost.api.door import send_whole
from llmhost.api.openai import generation_route
from llmhost.api.responses.desk import Desk, Order
from llmhost.api.responses.events import Silence
from llmhost.api.responses.frames import ResponseFrames
from llmhost.api.responses.resource import response_id
from llmhost.api.responses.wire import Asked, parse_response
from llmhost.api.visit import Visit
from llmhost.core.caller import Caller
from llmhost.core.ids import new_id
from llmhost.core.request import GenerationRequest, Kind
from llmhost.pipeline.processor import Processor

PATH = "/v1/responses/compact"
MOST_TOKENS = 2048
"""Of a summary whose caller does not say how long it may be."""
WISH = (
    "Summarise the conversation so far, so that it can be gone on with from your summary alone. Keep facts, names,"
    " numbers, decisions, what was done, and what is still open. Answer with the summary only."
)


def compact_route(processor: Processor, desk: Desk, **limits: Any) -> ASGIApp:
    async def prepare(
        request: GenerationRequest, asked: Asked, caller: Caller
    ) -> tuple[GenerationRequest, Order]:
        whole, order = await desk.prepare(request, asked, caller)
        return replace(whole, messages=_asking(whole.messages)), order

    return generation_route(
        processor, Kind.RESPONSE, _parse, prepare=prepare, respond=_respond, **limits
    )


def _parse(raw: bytes, request_id: str, client_id: str | None) -> tuple[GenerationRequest, Asked]:
    """What changes the form of an answer has no meaning here. Raises BadRequest."""
    request, asked = parse_response(raw, request_id, client_id)
    most_tokens = request.max_tokens or MOST_TOKENS
    plain = replace(request, stream=False, max_tokens=most_tokens, tools=None, grammar=None)
    return replace(
        plain, may_call=False, most_calls=None, custom_tools=frozenset(), text_grammars=()
    ), asked


def _asking(messages: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    last = messages[-1]
    if last["role"] == "user":  # many templates take no two of them in a row
        return *messages[:-1], {**last, "content": f"{last['content']}\n\n{WISH}"}
    return *messages, {"role": "user", "content": WISH}


async def _respond(visit: Visit, send: Send, _: float | None, order: Order) -> None:
    assert visit.exchange is not None
    context = visit.exchange.context
    deltas = await visit.exchange.read_whole()
    if visit.is_gone:
        return
    frames = ResponseFrames(order.asked, context, Silence())
    frames.take(deltas)
    made = frames.end(context.usage, frames.extras(with_facts=False))
    said = [item["content"][0]["text"] for item in made["output"] if item["type"] == "message"]
    summary = {
        "id": new_id("cmp_"),
        "type": "compaction",
        "encrypted_content": order.seal.close("\n".join(said)),
    }
    body = {
        "id": response_id(context.request.request_id),
        "object": "response.compaction",
        "created_at": made["created_at"],
        "output": [summary],
        "usage": made["usage"],
    }
    headers = {**visit.headers(), **bill_headers(context)}
    await send_whole(send, 200, msgspec.json.encode(body), headers, line=visit.line)
