"""What is done with what is kept: responses, their items, conversations."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import msgspec

from llmhost.api.creating import Creation, Sent
from llmhost.api.idempotency import digest
from llmhost.api.loose import Raw, asks
from llmhost.api.responses.bodies import Metadata, WireItem, check_signs
from llmhost.api.responses.desk import INLINE_BYTES, Desk, scope_of
from llmhost.api.responses.events import DONE, Events
from llmhost.api.responses.resource import FAILED, Resource
from llmhost.api.responses.turns import Turns, kept_item, read_items
from llmhost.core.errors import InvalidValue, MissingParameter, NotFound
from llmhost.core.ids import new_id
from llmhost.storage.conversations import Conversation
from llmhost.storage.keyed_calls import Made, Note
from llmhost.storage.responses import Item

PAGE_ITEMS, MOST_ITEMS = 20, 100
MOST_ADDED = 20
"""Items that a conversation takes at once, as OpenAI's does."""
MOST_NOTED_BYTES = 2**14
"""Of the ids of items that came with a key: they are noted beside the room that a scope has."""

_encode = msgspec.json.encode


class Responses:
    """Those that are kept, for their scopes. Raises NotFound for others."""

    def __init__(self, desk: Desk, heartbeat_s: float) -> None:
        self._store, self._runs = desk.store, desk.runs
        self._heartbeat_s = heartbeat_s

    async def find(self, scope: str, name: str) -> bytes:
        found = await self._store.find(scope, name)
        if found is None:
            raise _no_response(name)
        return found

    async def follow(self, scope: str, name: str, after: int | None) -> AsyncIterator[bytes]:
        """The events of a background response, those after a number alone."""
        after = -1 if after is None else after
        if after < -1:
            raise InvalidValue("'starting_after' is at least 0.", param="starting_after")
        if (run := self._runs.find(scope, name)) is not None:
            return run.read(after, self._heartbeat_s)
        told = msgspec.json.decode(await self.find(scope, name))
        if not told["background"]:
            raise InvalidValue(
                "Only a response with 'background': true can be streamed again.", param="stream"
            )
        return _told(await self._store.events(scope, name), told, after)

    async def cancel(self, scope: str, name: str) -> bytes:
        await self._stop(scope, name)
        found = await self.find(scope, name)
        if not msgspec.json.decode(found)["background"]:
            raise InvalidValue(
                "Only a response with 'background': true can be cancelled. Others end when their client leaves.",
                param="response_id",
            )
        return found

    async def delete(self, scope: str, name: str) -> bytes:
        await self._stop(scope, name)
        if not await self._store.delete(scope, name):
            raise _no_response(name)
        return _encode({"id": name, "object": "response", "deleted": True})

    async def input(self, scope: str, name: str, **page: Any) -> bytes:
        items = await self._store.input(scope, name)
        if items is None:
            raise _no_response(name)
        return page_of(items, **page)

    async def _stop(self, scope: str, name: str) -> None:
        if (run := self._runs.find(scope, name)) is not None:
            run.cancel()
            await run.ended()


class Conversations:
    """The same of conversations."""

    def __init__(self, desk: Desk, creation: Creation) -> None:
        self._desk = desk
        self._store = desk.conversations
        self._creation = creation

    async def make(
        self, sent: Sent, body: bytes, items: Raw, metadata: Metadata | None
    ) -> tuple[bytes, Made | None]:
        """`body` is all of what was sent. NotFound too where the conversation of such a call is gone."""
        scope = scope_of(sent.caller)
        kept = await self._checked(items, scope) if asks(items) else []

        async def make(note: Note | None) -> bytes:
            told = _encode(metadata or {})
            return conversation_object(
                await self._store.make(scope, new_id("conv_"), told, kept, note)
            )

        async def find(name: str) -> bytes:
            return await self.find(scope, name)

        return await self._creation.once(sent.call(digest(body)), make, find)

    async def find(self, scope: str, name: str) -> bytes:
        return conversation_object(await self._store.find(scope, name))

    async def change(self, scope: str, name: str, metadata: Metadata | None) -> bytes:
        return conversation_object(await self._store.change(scope, name, _encode(metadata or {})))

    async def delete(self, scope: str, name: str) -> bytes:
        await self._store.delete(scope, name)
        return _encode({"id": name, "object": "conversation.deleted", "deleted": True})

    async def items(self, scope: str, name: str, **page: Any) -> bytes:
        return page_of(await self._store.items(scope, name), **page)

    async def add(
        self, sent: Sent, body: bytes, name: str, items: Raw
    ) -> tuple[bytes, Made | None]:
        """The same of items, those of which that have been deleted since are left out."""
        if not asks(items):
            raise MissingParameter("items")
        scope = scope_of(sent.caller)
        kept = await self._checked(items, scope)
        these = _encode([sent.request_id, *(item for item, _ in kept)]).decode()
        if sent.has_key and len(these) > MOST_NOTED_BYTES:
            raise InvalidValue(
                f"The ids of these items have more than {MOST_NOTED_BYTES} bytes together, and can't be kept for the"
                " header Idempotency-Key. Send shorter ones, or none.",
                param="items",
            )

        async def add(note: Note | None) -> bytes:
            await self._store.add(scope, name, kept, note, these)
            return _added(kept)

        async def find(those: str) -> bytes:
            _, *ids = msgspec.json.decode(those)
            return _added(await self._store.some(scope, name, ids))

        return await self._creation.once(sent.call(digest(body)), add, find)

    async def item(self, scope: str, name: str, item: str) -> bytes:
        return await self._store.item(scope, name, item)

    async def delete_item(self, scope: str, name: str, item: str) -> bytes:
        return conversation_object(await self._store.delete_item(scope, name, item))

    async def _checked(self, given: Raw, scope: str) -> list[Item]:
        """What can be kept, and can be said to a model. Raises BadRequest that names the item."""
        check_signs([given], "items")
        is_large = len(bytes(given)) > INLINE_BYTES
        read = partial(_read, given, Turns(self._desk.seal_for(scope)))
        return await asyncio.to_thread(read) if is_large else read()


def _added(items: Sequence[Item]) -> bytes:
    return page_of(items, limit=MOST_ITEMS, order="asc", after=None)


def _read(given: Raw, turns: Turns) -> list[Item]:
    if not bytes(given).lstrip().startswith(b"["):
        raise InvalidValue("'items' is a list of items.", param="items")
    items = read_items(given, "items")
    if len(items) > MOST_ADDED:
        raise InvalidValue(
            f"'items' holds {len(items)} items; {MOST_ADDED} are allowed at once.", param="items"
        )
    turns.add_all(items, "items")
    return [_item_of(item, f"items[{place}]") for place, item in enumerate(items)]


def page_of(items: Sequence[Item], *, limit: int, order: str, after: str | None) -> bytes:
    """OpenAI's list of items, which come oldest first. Raises InvalidValue, and NotFound for an `after` that isn't."""
    if not 1 <= limit <= MOST_ITEMS:
        raise InvalidValue(f"'limit' is 1 to {MOST_ITEMS}.", param="limit")
    if order not in ("asc", "desc"):
        raise InvalidValue("'order' is asc or desc.", param="order")
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        names = [name for name, _ in ordered]
        if after not in names:
            raise NotFound(f"There is no item {after[:80]!r} to go on after.", param="after")
        ordered = ordered[names.index(after) + 1 :]
    page = ordered[:limit]
    told = {
        "object": "list",
        "data": [msgspec.Raw(item) for _, item in page],
        "first_id": page[0][0] if page else "",
        "last_id": page[-1][0] if page else "",
        "has_more": len(ordered) > limit,
    }
    return _encode(told)


def _item_of(item: WireItem, at: str) -> Item:
    known = kept_item(item, at)
    return known["id"], _encode(known)


async def _told(events: bytes | None, resource: Resource, after: int) -> AsyncIterator[bytes]:
    """Of a response that a process left behind only its end is known."""
    if events is None:
        last = Events(after + 1)
        last.say(f"response.{FAILED}", response=resource)
        events, after = b"".join(last.take()), -1
    for event in events.split(b"\n\n")[after + 1 : -1]:
        yield event + b"\n\n"
    yield DONE


def _no_response(name: str) -> NotFound:
    return NotFound(f"There is no response {name[:80]!r} here.")


def conversation_object(found: Conversation) -> bytes:
    return _encode(
        {
            "id": found.id,
            "object": "conversation",
            "created_at": found.created_s,
            "metadata": msgspec.Raw(found.metadata),
        }
    )
