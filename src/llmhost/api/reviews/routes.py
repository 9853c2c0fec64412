"""/v1/reviews/{id}: what became of a text that waits for a reviewer, for the key that sent it."""

from typing import Any

import msgspec
from litestar import Response, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ControllerRouterHandler

from llmhost.api.creating import AnyRequest
from llmhost.api.files.routes import CallerOf
from llmhost.api.params import FromPath
from llmhost.api.reviews.caller_wire import HeldResponse, ReviewObject, review_object
from llmhost.api.reviews.held import PATH, waiting_headers
from llmhost.core.caller import Caller
from llmhost.core.ids import new_request_id
from llmhost.pipeline.held import Holds, request_id_of
from llmhost.safety.review import ReviewState

SOON_S = 1.0
"""When to ask again for an answer that is being computed."""


def review_routes(holds: Holds, caller_of: CallerOf) -> list[ControllerRouterHandler]:
    waiting = ResponseSpec(ReviewObject, description="Not yet: ask again after `retry-after`.")

    @get(f"{PATH}/{{review_id:str}}", tags=["reviews"], responses={202: waiting})
    async def read_review(request: AnyRequest, review_id: FromPath[str]) -> Response[ReviewObject]:
        """What became of a text, and the answer of the call that was held for it."""
        told = await tell(holds, review_id, await caller_of(request))
        headers = {"x-request-id": new_request_id()}
        if told.status not in ("pending", "running"):
            return Response(told, headers=headers)
        soon_s = holds.queue.settings.retry_after_s if told.status == "pending" else SOON_S
        headers |= waiting_headers(review_id, soon_s)
        return Response(told, status_code=202, headers=headers)

    return [read_review]


async def tell(holds: Holds, review_id: str, caller: Caller) -> ReviewObject:
    """Raises NotFound, also for what another key has sent."""
    review = await holds.queue.of_caller(review_id, caller)
    if review.state is not ReviewState.APPROVED:
        return review_object(review)
    answer = await holds.answer(review_id)
    if answer is None:
        return review_object(review, is_running=await holds.is_coming(review_id))
    body: Any = msgspec.json.decode(answer.body)
    response = HeldResponse(
        status_code=answer.status, request_id=request_id_of(review_id), body=body
    )
    return review_object(review, response=response)
