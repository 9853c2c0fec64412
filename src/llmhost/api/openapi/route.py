"""GET /schema: the whole document, made once, when somebody first asks for it."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from litestar import Litestar, Request, Response, get
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import ControllerRouterHandler

from llmhost.api.openapi.document import Json, document_of
from llmhost.api.openapi.operations import ALL

PATHS = ("/schema", "/schema/openapi.json")
OLDER_PATH = "/admin/openapi"
"""Where litestar serves what it knows of; the same document is there, for those who know it by that."""


class Document:
    """The encoded document of an application."""

    def __init__(self) -> None:
        self._encoded: bytes | None = None

    def of(self, own: Callable[[], Json]) -> bytes:
        """Takes some tenths of a second when it is first called."""
        if self._encoded is None:
            self._encoded = msgspec.json.encode(document_of(own(), ALL))
        return self._encoded


class OlderPath(JsonRenderPlugin):
    """Our document where litestar would show its own."""

    def __init__(self, document: Document) -> None:
        super().__init__()
        self._document = document

    def render(self, _: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return self._document.of(lambda: openapi_schema)


def schema_route(document: Document) -> ControllerRouterHandler:
    """Everybody may read it."""

    def encoded(app: Litestar) -> bytes:
        return document.of(lambda: app.openapi_schema.to_schema())

    @get(list(PATHS), include_in_schema=False)
    async def schema(request: Request[Any, Any, Any]) -> Response[bytes]:
        body = await asyncio.to_thread(encoded, request.app)
        return Response(body, media_type="application/json")

    return schema
