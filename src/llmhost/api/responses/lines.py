"""A response as the line of a batch: whole, and kept nowhere but in the batch's output.

Its id is its line's. A line that is run again would find itself kept, and what goes on with it could go on twice.
"""

from dataclasses import replace

import msgspec

from llmhost.api.responses.desk import Order
from llmhost.api.responses.events import Silence
from llmhost.api.responses.frames import ResponseFrames
from llmhost.api.responses.wire import Asked, parse_response
from llmhost.core.errors import UnsupportedParameter
from llmhost.core.request import GenerationRequest
from llmhost.pipeline.exchange import Exchange

_NOT_IN_LINES = ("background", "conversation")


def parse_line(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, Asked]:
    """Raises BadRequest."""
    request, asked = parse_response(raw, request_id, client_id)
    for name in _NOT_IN_LINES:
        if getattr(asked.body, name):
            raise UnsupportedParameter(f"The line of a batch can't have {name!r}.", param=name)
    return request, replace(asked, body=msgspec.structs.replace(asked.body, store=False))


async def line_body(exchange: Exchange, order: Order) -> bytes:
    """The answer, once it has ended. Raises the error that ended it."""
    deltas = await exchange.read_whole()
    context = exchange.context
    frames = ResponseFrames(order.asked, context, Silence(), order.sealer)
    frames.take(deltas)
    return msgspec.json.encode(frames.end(context.usage, frames.extras(with_facts=False)))
