"""Routes of what is kept: responses, their items, conversations. To whoever may not see a thing it does not exist."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from litestar import Response, delete, get, post
from litestar.response import Stream
from litestar.types import ControllerRouterHandler

from llmhost.api.creating import AnyRequest, sent, told_headers
from llmhost.api.dialect import OPENAI
from llmhost.api.files.routes import CallerOf
from llmhost.api.loose import NULL, Raw, read_body
from llmhost.api.openai import EVENT_STREAM, STREAM_HEADERS
from llmhost.api.params import FromPath, FromQuery, JSONBody
from llmhost.api.responses.bodies import Metadata
from llmhost.api.responses.shelf import PAGE_ITEMS, Conversations, Responses
from llmhost.core.errors import InvalidValue
from llmhost.core.ids import new_request_id

Scope = Callable[[AnyRequest], Awaitable[str]]
"""Who asks, as far as what is kept is concerned. Raises Unauthenticated."""


class NewConversation(msgspec.Struct, frozen=True, kw_only=True):
    items: list[dict[str, Any]] | None = None
    metadata: Metadata | None = None


class _Given(msgspec.Struct, frozen=True):
    """The same, and `NewItems`, as they are read: items in one piece."""

    items: Raw = NULL
    metadata: Metadata | None = None


class ConversationChange(msgspec.Struct, frozen=True, kw_only=True):
    metadata: Metadata | None = None


class NewItems(msgspec.Struct, frozen=True, kw_only=True):
    items: list[dict[str, Any]] | None = None


def response_routes(responses: Responses, scope_of: Scope) -> list[ControllerRouterHandler]:
    """For whoever may see a response."""

    @get("/v1/responses/{response_id:str}", tags=["responses"])
    async def read_response(
        request: AnyRequest,
        response_id: FromPath[str],
        stream: FromQuery[bool] = False,
        starting_after: FromQuery[int | None] = None,
    ) -> Response[Any]:
        """A response that is kept; with `stream`, the events of one that runs or ran in the background."""
        scope = await scope_of(request)
        if stream:
            return _stream(await responses.follow(scope, response_id, starting_after))
        if starting_after is not None:
            raise InvalidValue(
                "'starting_after' is only allowed when 'stream' is true.", param="starting_after"
            )
        return _json(await responses.find(scope, response_id))

    @delete("/v1/responses/{response_id:str}", status_code=200, tags=["responses"])
    async def delete_response(request: AnyRequest, response_id: FromPath[str]) -> Response[Any]:
        """Forget a response; one that runs is cancelled."""
        return _json(await responses.delete(await scope_of(request), response_id))

    @post("/v1/responses/{response_id:str}/cancel", status_code=200, tags=["responses"])
    async def cancel_response(request: AnyRequest, response_id: FromPath[str]) -> Response[Any]:
        """Cancel a response that runs in the background; one that has ended stays as it is."""
        return _json(await responses.cancel(await scope_of(request), response_id))

    @get("/v1/responses/{response_id:str}/input_items", tags=["responses"])
    async def list_input(
        request: AnyRequest,
        response_id: FromPath[str],
        limit: FromQuery[int] = PAGE_ITEMS,
        order: FromQuery[str] = "desc",
        after: FromQuery[str | None] = None,
    ) -> Response[Any]:
        """The items that came with a response, newest first."""
        scope = await scope_of(request)
        found = await responses.input(scope, response_id, limit=limit, order=order, after=after)
        return _json(found)

    return [read_response, delete_response, cancel_response, list_input]


def conversation_routes(
    conversations: Conversations, scope_of: Scope, caller_of: CallerOf
) -> list[ControllerRouterHandler]:
    """For whoever may see a conversation."""

    @post("/v1/conversations", status_code=200, tags=["conversations"])
    async def make_conversation(
        request: AnyRequest,
    ) -> Response[Any]:
        """A conversation, with items if there are some already."""
        call = sent(request, await caller_of(request))
        raw = await request.body()
        asked = _Given() if raw.strip() in (b"", b"null") else read_body(raw, _Given)
        body, made = await conversations.make(call, raw, asked.items, asked.metadata)
        return _json(body, told_headers(call, made))

    @get("/v1/conversations/{conversation_id:str}", tags=["conversations"])
    async def read_conversation(
        request: AnyRequest, conversation_id: FromPath[str]
    ) -> Response[Any]:
        """A conversation, without its items."""
        return _json(await conversations.find(await scope_of(request), conversation_id))

    @post("/v1/conversations/{conversation_id:str}", status_code=200, tags=["conversations"])
    async def change_conversation(
        request: AnyRequest, conversation_id: FromPath[str], data: JSONBody[ConversationChange]
    ) -> Response[Any]:
        """Give a conversation other metadata."""
        scope = await scope_of(request)
        return _json(await conversations.change(scope, conversation_id, data.metadata))

    @delete("/v1/conversations/{conversation_id:str}", status_code=200, tags=["conversations"])
    async def delete_conversation(
        request: AnyRequest, conversation_id: FromPath[str]
    ) -> Response[Any]:
        """Forget a conversation and its items. Responses that were part of it stay."""
        return _json(await conversations.delete(await scope_of(request), conversation_id))

    return [make_conversation, read_conversation, change_conversation, delete_conversation]


ITEMS = "/v1/conversations/{conversation_id:str}/items"


def item_routes(
    conversations: Conversations, scope_of: Scope, caller_of: CallerOf
) -> list[ControllerRouterHandler]:
    """Items of conversations."""

    @get(ITEMS, tags=["conversations"])
    async def list_items(
        request: AnyRequest,
        conversation_id: FromPath[str],
        limit: FromQuery[int] = PAGE_ITEMS,
        order: FromQuery[str] = "desc",
        after: FromQuery[str | None] = None,
    ) -> Response[Any]:
        """The items of a conversation, newest first."""
        page = {"limit": limit, "order": order, "after": after}
        return _json(await conversations.items(await scope_of(request), conversation_id, **page))

    @post(ITEMS, status_code=200, tags=["conversations"])
    async def add_items(request: AnyRequest, conversation_id: FromPath[str]) -> Response[Any]:
        """Put items at the end of a conversation."""
        call = sent(request, await caller_of(request))
        raw = await request.body()
        items = read_body(raw, _Given).items
        body, made = await conversations.add(call, raw, conversation_id, items)
        return _json(body, told_headers(call, made))

    @get(ITEMS + "/{item_id:str}", tags=["conversations"])
    async def read_item(
        request: AnyRequest, conversation_id: FromPath[str], item_id: FromPath[str]
    ) -> Response[Any]:
        """One item of a conversation."""
        return _json(await conversations.item(await scope_of(request), conversation_id, item_id))

    @delete(ITEMS + "/{item_id:str}", status_code=200, tags=["conversations"])
    async def delete_item(
        request: AnyRequest, conversation_id: FromPath[str], item_id: FromPath[str]
    ) -> Response[Any]:
        """Take an item out of a conversation, which is the answer."""
        scope = await scope_of(request)
        return _json(await conversations.delete_item(scope, conversation_id, item_id))

    return [list_items, add_items, read_item, delete_item]


def _json(body: bytes, headers: dict[str, str] | None = None) -> Response[Any]:
    named = headers or {"x-request-id": new_request_id()}
    return Response(body, media_type="application/json", headers=named)


def _stream(events: AsyncIterator[bytes]) -> Stream:
    async def bodies() -> AsyncIterator[bytes]:
        async for body in events:
            yield body or OPENAI.heartbeat

    headers = {**STREAM_HEADERS, "x-request-id": new_request_id()}
    return Stream(bodies(), media_type=EVENT_STREAM, headers=headers)
