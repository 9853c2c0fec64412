"""What can be done with stored chats, by those who share them."""

import asyncio
import logging

import msgspec

from llmhost.api.chats.wire import ChatPage, Deleted, Wish, page_object, stored_message
from llmhost.api.frames import answer_id
from llmhost.core.caller import Caller
from llmhost.core.errors import InvalidValue, LlmhostError, NotFound
from llmhost.core.ports import Clock
from llmhost.observe.logs import log_event
from llmhost.pipeline.context import RequestContext
from llmhost.storage.stored_chats import Metadata, StoredChat, StoredChats, Wanted

log = logging.getLogger("llmhost.chats")

PAGE_ROWS = 20
MOST_ROWS = 100
INLINE_BYTES = 64 * 1024
"""Longer ones are put together in a thread."""
WIDTHS = ("key", "team", "org")
"""How far callers share what they stored: as far as the cache of the model that answered, and at most so far."""


def place_of(caller: Caller, width: str) -> str:
    """The same for all who share with a caller, where that is as wide as this."""
    width = "org" if width == "public" else width
    return f"{width}/{caller.scope(width)}"


def places_of(caller: Caller) -> list[str]:
    """Everything that a caller may see."""
    return [place_of(caller, width) for width in WIDTHS]


class ChatDesk:
    """Keeps, lists, shows, labels and deletes."""

    def __init__(self, chats: StoredChats, clock: Clock) -> None:
        self._chats = chats
        self._clock = clock

    async def keep(self, wish: Wish, context: RequestContext, body: bytes) -> None:
        """Keep a whole answer. One that can't be kept was made and paid for all the same, so its reader gets it."""
        request = context.request
        size = len(body) + request.size
        chat = (
            await asyncio.to_thread(_stored, context, wish, body) if size > INLINE_BYTES else None
        )
        chat = chat or _stored(context, wish, body)
        try:
            is_kept = await self._chats.keep(chat, self._clock.utc_ns())
        except LlmhostError as error:
            log.warning("chat.not_stored request=%s error=%s", request.request_id, error)
            return
        if not is_kept:
            log_event(log, "chat.not_stored", request=request.request_id, why="too_long")

    async def list(
        self,
        caller: Caller,
        *,
        after: str | None,
        limit: int,
        order: str,
        model: str | None,
        metadata: Metadata,
    ) -> ChatPage:
        wanted = Wanted(
            places=places_of(caller),
            after=after,
            limit=checked_limit(limit),
            is_newest_first=checked_order(order) == "desc",
            model=model,
            metadata=metadata,
        )
        page = await self._chats.page(wanted)
        if page is None:
            raise unknown_after(after)
        return page_object(page.data, has_more=page.has_more)

    async def show(self, caller: Caller, id_: str) -> dict[str, object]:
        found = await self._chats.find(id_, places_of(caller))
        if found is None:
            raise no_chat(id_)
        return found

    async def messages(
        self, caller: Caller, id_: str, *, after: str | None, limit: int, order: str
    ) -> ChatPage:
        limit, order = checked_limit(limit), checked_order(order)
        found = await self._chats.messages(id_, places_of(caller))
        if found is None:
            raise no_chat(id_)
        rows = found if order == "asc" else found[::-1]
        if after is not None:
            places = [place for place, row in enumerate(rows) if row["id"] == after]
            if not places:
                raise unknown_after(after)
            rows = rows[places[0] + 1 :]
        return page_object(rows[:limit], has_more=len(rows) > limit)

    async def label(self, caller: Caller, id_: str, metadata: Metadata) -> dict[str, object]:
        if not await self._chats.label(id_, places_of(caller), metadata):
            raise no_chat(id_)
        return await self.show(caller, id_)

    async def delete(self, caller: Caller, id_: str) -> Deleted:
        if not await self._chats.delete(id_, places_of(caller)):
            raise no_chat(id_)
        return Deleted(id=id_)


def _stored(context: RequestContext, wish: Wish, body: bytes) -> StoredChat:
    request, caller = context.request, context.known_caller
    id_ = answer_id(request)
    asked = [stored_message(each, f"{id_}-{i}") for i, each in enumerate(wish.messages)]
    facts = {**wish.settings, "request_id": request.request_id}
    return StoredChat(
        id=id_,
        org=caller.org,
        place=place_of(caller, context.known_deployment.entry.spec.cache_scope),
        model=request.model,
        metadata=wish.metadata,
        messages=msgspec.json.encode(asked),
        answer=msgspec.json.encode({**msgspec.json.decode(body, type=dict), **facts}),
    )


def no_chat(id_: str) -> NotFound:
    """The same for another's as for one that does not exist."""
    return NotFound(f"There is no stored chat {id_[:80]!r}.")


def unknown_after(after: str | None) -> InvalidValue:
    return InvalidValue(
        f"'after' is {str(after)[:80]!r}, which is no id of this list.", param="after"
    )


def checked_limit(limit: int) -> int:
    if not 1 <= limit <= MOST_ROWS:
        raise InvalidValue(f"'limit' is {limit}; it may be 1 to {MOST_ROWS}.", param="limit")
    return limit


def checked_order(order: str) -> str:
    if order not in ("asc", "desc"):
        raise InvalidValue(f"'order' is {order[:80]!r}; it is asc or desc.", param="order")
    return order
