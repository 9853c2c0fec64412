"""Calls whose text waits for a reviewer, from the connection's side: they are kept, and told where to ask again."""

import math
from collections.abc import Mapping

import msgspec
from litestar.types import Send

from llmhost.api.bill_facts import REVIEW
from llmhost.api.door import send_whole
from llmhost.api.reviews.caller_wire import review_object
from llmhost.api.visit import Visit
from llmhost.cache.wish import HEADERS as WISH_HEADERS
from llmhost.core.caller import Caller
from llmhost.core.errors import HeldForReview
from llmhost.core.output import Delta
from llmhost.pipeline.authenticate import run_of
from llmhost.pipeline.held import Call, Holds

PATH = "/v1/reviews"


async def hold_call(
    holds: Holds, visit: Visit, held: HeldForReview, caller: Caller, headers: Mapping[str, str]
) -> None:
    """Keep a call whose prompt waits. Raises ContentRefused where it can't be kept, and StorageFailed."""
    wish = {name: headers[name] for name in WISH_HEADERS if name in headers}
    call = Call(
        path=visit.scope["path"],
        body=visit.raw,
        caller=caller,
        run_id=run_of(headers),
        wish=wish,
    )
    await holds.keep(held.review_id, call)


async def read_answer(visit: Visit) -> list[Delta] | None:
    """The whole answer; None where its client has left, and no reviewer lets it out later. Raises what ended it."""
    assert visit.exchange is not None
    said = await visit.exchange.read_whole()
    return await visit.exchange.read_left() if visit.is_gone else said


async def hold_answer(holds: Holds | None, visit: Visit, send: Send, body: bytes) -> bool:
    """Whether the answer waits for a reviewer: then it is kept, and what to ask for is said in its place.

    So it is where its client has left: it is paid for, and webhooks tell of it."""
    assert visit.exchange is not None
    held_by = visit.exchange.context.held_by
    if held_by is None:
        return False
    assert holds is not None, "an answer is held where it can be"
    await holds.keep_answer(held_by, body)
    if not visit.is_gone:
        await say_held(holds, visit, send, held_by)
    return True


async def say_held(holds: Holds, visit: Visit, send: Send, review_id: str) -> None:
    """Answer with 202 and what is asked for again."""
    review = await holds.queue.find_any(review_id)
    body = msgspec.json.encode(review_object(review))
    headers = {**visit.headers(), **waiting_headers(review_id, holds.queue.settings.retry_after_s)}
    visit.has_failed = True  # no answer yet: it is not one to be repeated
    await send_whole(send, 202, body, headers, line=visit.line)


def waiting_headers(review_id: str, retry_after_s: float) -> dict[str, str]:
    return {
        "location": f"{PATH}/{review_id}",
        "retry-after": str(math.ceil(retry_after_s)),
        REVIEW: review_id,
    }
