"""The routes of stored chats, for those who may ask models."""

from collections.abc import Iterable
from typing import Any

from litestar import Response, delete, get, post
from litestar.types import ASGIApp

from llmhost.api.chats.desk import PAGE_ROWS, ChatDesk
from llmhost.api.chats.wire import ChatPage, Deleted, Relabel
from llmhost.api.door import bearer
from llmhost.api.gatekeeper import Identify, vouch
from llmhost.api.json_request import JsonRequest
from llmhost.api.params import FromPath, FromQuery, JSONBody
from llmhost.api.router import Router
from llmhost.core.caller import Caller
from llmhost.core.ids import new_request_id

PATH = "/v1/chat/completions"


def chat_router(desk: ChatDesk, identify: Identify, answering: ASGIApp) -> Router:
    """`answering` serves what is no question about stored chats."""

    async def caller_of(request: JsonRequest) -> Caller:
        caller = await identify(bearer(request.scope), dict(request.headers))
        vouch(request.scope)
        return caller

    @get("/")
    async def list_chats(
        request: JsonRequest,
        after: FromQuery[str | None] = None,
        limit: FromQuery[int] = PAGE_ROWS,
        order: FromQuery[str] = "asc",
        model: FromQuery[str | None] = None,
    ) -> Response[ChatPage]:
        """Stored chats, the oldest first; `metadata[KEY]=VALUE` asks for those with that label."""
        caller = await caller_of(request)
        labels = _labels(request.query_params.multi_items())
        return _stamped(
            await desk.list(
                caller, after=after, limit=limit, order=order, model=model, metadata=labels
            )
        )

    @post("/", include_in_schema=False)
    async def answer() -> ASGIApp:
        """Where a server in front has the path in another spelling; others are served before they get here."""
        return answering

    @get("/{chat:str}")
    async def show_chat(request: JsonRequest, chat: FromPath[str]) -> Response[dict[str, Any]]:
        """One stored chat, as it was answered."""
        return _stamped(await desk.show(await caller_of(request), chat))

    @get("/{chat:str}/messages")
    async def list_messages(
        request: JsonRequest,
        chat: FromPath[str],
        after: FromQuery[str | None] = None,
        limit: FromQuery[int] = PAGE_ROWS,
        order: FromQuery[str] = "asc",
    ) -> Response[ChatPage]:
        """What was asked in a stored chat."""
        caller = await caller_of(request)
        return _stamped(await desk.messages(caller, chat, after=after, limit=limit, order=order))

    @post("/{chat:str}", status_code=200)
    async def label_chat(
        request: JsonRequest, chat: FromPath[str], data: JSONBody[Relabel]
    ) -> Response[dict[str, Any]]:
        """Give a stored chat other labels."""
        return _stamped(await desk.label(await caller_of(request), chat, data.labels))

    @delete("/{chat:str}", status_code=200)
    async def delete_chat(request: JsonRequest, chat: FromPath[str]) -> Response[Deleted]:
        """Delete a stored chat for good."""
        return _stamped(await desk.delete(await caller_of(request), chat))

    return Router(
        PATH,
        tags=["chats"],
        route_handlers=[answer, list_chats, show_chat, list_messages, label_chat, delete_chat],
    )


def _labels(items: Iterable[tuple[str, Any]]) -> dict[str, str]:
    return {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in items
        if name.startswith("metadata[") and name.endswith("]")
    }


def _stamped(body: Any) -> Response[Any]:
    return Response(body, headers={"x-request-id": new_request_id()})
