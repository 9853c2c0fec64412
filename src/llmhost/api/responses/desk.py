"""What a response goes on with, and where it is kept."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import msgspec

from llmhost.api.responses.bodies import WireItem
from llmhost.api.responses.floor import Floor
from llmhost.api.responses.frames import ResponseFrames
from llmhost.api.responses.resource import COMPLETED, FAILED, IN_PROGRESS, INCOMPLETE, Resource
from llmhost.api.responses.runs import SETTLING_S, Run, Runs
from llmhost.api.responses.sealed import Seal
from llmhost.api.responses.turns import Turns, is_reference, kept_item
from llmhost.api.responses.wire import Asked
from llmhost.core.caller import Caller
from llmhost.core.errors import (
    InvalidValue,
    LlmhostError,
    MissingParameter,
    NotFound,
    PreviousResponseNotFound,
)
from llmhost.core.request import GenerationRequest
from llmhost.pipeline.exchange import Exchange
from llmhost.storage.conversations import ConversationStore
from llmhost.storage.responses import ChainBroken, Item, Kept, ResponseStore

log = logging.getLogger("llmhost.responses")

INLINE_ITEMS = 200
INLINE_BYTES = 2**18
"""More are made messages in a thread."""
LOST = "The server was stopped or failed while it made this response. Ask again."

_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A request with all that it goes on with."""

    asked: Asked
    scope: str
    seal: Seal = field(repr=False)
    before: Sequence[bytes]
    """Items that it goes on with."""
    input: Sequence[Item]
    """As it is kept."""
    previous: str | None
    """The response that it goes on with, where that is kept."""

    @property
    def sealer(self) -> Any:
        """Encrypts thoughts, where they are wanted so."""
        return self.seal.close if self.asked.wants_encrypted else None


def scope_of(caller: Caller) -> str:
    """Who sees what a caller keeps here: its team, or the key alone where it has none."""
    return caller.scope("key" if caller.team is None else "team")


class Desk:
    """Joins requests with what is kept, and keeps what becomes of them."""

    def __init__(
        self, store: ResponseStore, conversations: ConversationStore, secret: bytes
    ) -> None:
        """`secret` is the key of what callers carry for us."""
        self.store = store
        self.conversations = conversations
        self.runs = Runs()
        self.floor = Floor()
        self._secret = secret

    def seal_for(self, scope: str) -> Seal:
        return Seal(self._secret, scope)

    async def prepare(
        self,
        request: GenerationRequest,
        asked: Asked,
        caller: Caller,
        known: Mapping[str, list[bytes]] = MappingProxyType({}),
    ) -> tuple[GenerationRequest, Order]:
        """`known` are responses that are held in memory, by their ids.

        Raises PreviousResponseNotFound, NotFound, and BadRequest that names an item.
        """
        scope = scope_of(caller)
        seal = self.seal_for(scope)
        previous = asked.body.previous_response_id
        held = None if previous is None else known.get(previous)
        before = await self._before(asked, scope) if held is None else held
        items = [await self._referred(item, place, scope) for place, item in enumerate(asked.items)]

        def build() -> tuple[GenerationRequest, list[Item]]:
            turns = Turns(seal, asked.body.instructions)
            turns.add_kept(before, "previous_response_id")
            turns.add_all(items)
            whole = replace(request, messages=asked.with_messages(turns.finish()).messages)
            return whole, [_kept(item, place) for place, item in enumerate(items)]

        size = sum(map(len, before)) + len(bytes(asked.body.input))
        is_large = len(before) + len(items) > INLINE_ITEMS or size > INLINE_BYTES
        whole, kept = await asyncio.to_thread(build) if is_large else build()
        if held is not None:  # which may be stored nowhere
            previous, kept = None, [*map(_named, held), *kept]
            before = []
        return whole, Order(
            asked=asked, scope=scope, seal=seal, before=before, input=kept, previous=previous
        )

    async def _before(self, asked: Asked, scope: str) -> list[bytes]:
        if (conversation := asked.conversation) is not None:
            try:
                said = await self.conversations.items(scope, conversation, is_gone_on_with=True)
            except NotFound as error:
                raise NotFound(error.message, param="conversation") from None
            return [item for _, item in said]
        previous = asked.body.previous_response_id
        if previous is None:
            return []
        try:
            return await self.store.chain(scope, previous)
        except ChainBroken as broken:
            if not broken.is_live:
                raise PreviousResponseNotFound(previous) from None
            raise InvalidValue(
                f"The response {previous[:80]!r} has not ended. Wait for its end, or cancel it.",
                param="previous_response_id",
            ) from None

    async def _referred(self, item: WireItem, place: int, scope: str) -> WireItem:
        if not is_reference(item):
            return item
        if item.id is None:
            raise MissingParameter(f"input[{place}].id")
        found = await self.store.item(scope, item.id)
        if found is None:
            raise NotFound(
                f"There is no item {item.id[:80]!r} here. Items of responses with 'store': false are not kept.",
                param=f"input[{place}].id",
            )
        return msgspec.json.decode(found, type=WireItem)

    async def begin(self, run: Run) -> None:
        """Let a response run in the background. Raises StorageFailed or Overloaded where it can't be kept."""
        await self.store.begin(self.kept(run.order, run.frames.begun, is_live=True))
        task = self.runs.start(run, self)
        self.floor.pass_on(run.order.scope, run.order.asked.conversation, task)

    def kept(self, order: Order, resource: Resource, **more: Any) -> Kept:
        output = [(item["id"], _encode(item)) for item in resource["output"]]
        return Kept(
            id=resource["id"],
            scope=order.scope,
            resource=_encode({**resource, "output": []}),
            input=order.input,
            output=output,
            previous=order.previous,
            conversation=order.asked.conversation,
            is_said=resource["status"] in (COMPLETED, INCOMPLETE),
            **more,
        )

    async def keep(self, order: Order, resource: Resource, **more: Any) -> bool:
        """On disk when it is done. An answer that can't be kept has been made and billed all the same: it says so, and
        this is False."""
        if order.asked.is_stored:
            try:
                await self.store.end(self.kept(order, resource, **more))
            except LlmhostError as error:
                resource["store"] = False
                log.warning("response.not_kept response=%s error=%s", resource["id"], error)
                return False
        self.floor.let_go(order.scope, order.asked.conversation)
        return True

    async def keep_cut(self, order: Order, frames: ResponseFrames, exchange: Exchange) -> None:
        """What was said to a client that left before the end, which had the response's id."""
        if frames.resource["status"] == IN_PROGRESS:
            await self.keep(order, frames.cancel(await exchange.used(SETTLING_S)))


def _kept(item: WireItem, place: int) -> Item:
    known = kept_item(item, f"input[{place}]")
    return known["id"], _encode(known)


class _Named(msgspec.Struct, frozen=True):
    id: str


def _named(item: bytes) -> Item:
    return msgspec.json.decode(item, type=_Named).id, item


def lost(resource: bytes) -> bytes:
    """A response that nobody makes any more, as it is kept from now on."""
    known: Resource = msgspec.json.decode(resource)
    error = {"code": "server_error", "message": LOST}
    return _encode({**known, "status": FAILED, "error": error})
