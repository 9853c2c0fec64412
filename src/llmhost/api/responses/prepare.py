"""From what was asked to what is run: with all that it goes on with, and cut where that is allowed."""

from collections.abc import Mapping

from llmhost.api.responses.desk import Desk, Order, scope_of
from llmhost.api.responses.truncate import shortened
from llmhost.api.responses.wire import Asked
from llmhost.core.caller import Caller
from llmhost.core.request import GenerationRequest
from llmhost.pipeline.processor import Processor


async def prepare(
    processor: Processor,
    desk: Desk,
    request: GenerationRequest,
    asked: Asked,
    caller: Caller,
    known: Mapping[str, list[bytes]] | None = None,
) -> tuple[GenerationRequest, Order]:
    """`known` are responses that are held in memory, by their ids. Raises what `Desk.prepare` does."""
    whole, order = await desk.prepare(request, asked, caller, known or {})
    if asked.body.truncation == "auto":
        whole = await shortened(whole, lambda shorter: processor.inquiries.measure(shorter, caller))
    return whole, order


async def prepare_to_run(
    processor: Processor,
    desk: Desk,
    request: GenerationRequest,
    asked: Asked,
    caller: Caller,
    known: Mapping[str, list[bytes]] | None = None,
) -> tuple[GenerationRequest, Order]:
    """The same for one that is run by this task, to whom its conversation is from now on. Raises ConversationLocked."""
    desk.floor.take(scope_of(caller), asked.conversation)
    return await prepare(processor, desk, request, asked, caller, known)
