"""/admin/v1: the operator's routes, some of which keys may use within their organisation. They answer no CORS."""

from collections.abc import Iterator
from typing import Any

import msgspec
from litestar import get, post
from litestar.response import Stream

from llmhost.api.admin import Admin, NewAdapter
from llmhost.api.admin_access import Visitor, guard_by
from llmhost.api.admin_tenant_routes import key_routes, org_routes, team_routes
from llmhost.api.admin_tenants import PAGE_ROWS
from llmhost.api.invoices import InvoiceDesk, invoice_routes
from llmhost.api.ledger import LedgerDesk, ledger_routes
from llmhost.api.model_wire import (
    AdapterPage,
    AdapterRow,
    LoadedPage,
    ModelPage,
    ModelState,
    adapter_page,
    loaded_page,
    model_page,
)
from llmhost.api.params import FromPath, FromQuery, JSONBody
from llmhost.api.reports import ReportDesk, report_routes
from llmhost.api.router import Router
from llmhost.core.errors import NotFound
from llmhost.tenants.roles import Access, Right

NDJSON = "application/x-ndjson"


def admin_router(  # noqa: C901 - a list of routes
    admin: Admin,
    desk: ReportDesk,
    ledger: LedgerDesk,
    invoices: InvoiceDesk,
    token: str,
    *,
    drain_s: float,
) -> Router:
    """The routes: all for `token`, and for keys those that name a right."""

    @get("/models")
    async def list_models(
        limit: FromQuery[int] = PAGE_ROWS, after: FromQuery[str | None] = None
    ) -> ModelPage:
        """Declared models, the state of each, and whether its files are here."""
        return model_page(await admin.models(), limit, after)

    @get("/ps", sync_to_thread=False)
    def list_loaded(
        limit: FromQuery[int] = PAGE_ROWS, after: FromQuery[str | None] = None
    ) -> LoadedPage:
        """Loaded models: memory, load, KV use."""
        return loaded_page(admin.loaded(), limit, after)

    # One route for all verbs: a model's name may hold slashes, and a path parameter takes all that follows.
    @post("/models/{target:path}", status_code=200)
    async def turn(target: FromPath[str]) -> ModelState:
        """NAME/load answers when the model is ready, or why it can't be; NAME/unload when its answers have ended;
        NAME/sleep when its weights are in host memory, and NAME/wake when they are back."""
        name, _, verb = target.strip("/").rpartition("/")
        if verb == "load":
            told = await admin.load(name)
        elif verb == "unload":
            told = await admin.unload(name, drain_s=drain_s)
        elif verb == "sleep":
            told = await admin.sleep(name, drain_s=drain_s)
        elif verb == "wake":
            told = await admin.wake(name)
        else:
            raise NotFound(
                f"A model can be told to load, unload, sleep or wake, and not to {verb!r}."
            )
        return msgspec.convert(told, ModelState)

    @get("/adapters")
    async def list_adapters(
        limit: FromQuery[int] = PAGE_ROWS, after: FromQuery[str | None] = None
    ) -> AdapterPage:
        """LoRA adapters, and which of them are in memory."""
        return adapter_page(await admin.adapters(), limit, after)

    @post("/adapters/load", status_code=200)
    async def load_adapter(data: JSONBody[NewAdapter]) -> AdapterRow:
        """Load an adapter; with a source, add one."""
        return msgspec.convert(await admin.load_adapter(data), AdapterRow)

    @post("/adapters/unload", status_code=200)
    async def unload_adapter(data: JSONBody[NewAdapter]) -> AdapterRow:
        """Drop an adapter from memory when nobody uses it; forget it, if it was added by a load."""
        told = await admin.unload_adapter(data.adapter, drain_s=drain_s)
        return msgspec.convert(told, AdapterRow)

    @get("/ledger/export", media_type=NDJSON, sync_to_thread=False, needs=Right.ORG_USAGE)
    def export_ledger(request: Visitor) -> Stream:
        """Every entry, one JSON object a line; a key gets those of its organisation."""
        return Stream(_lines(admin, request.user), media_type=NDJSON)

    @get("/plugins", sync_to_thread=False)
    def list_plugins() -> dict[str, Any]:
        """Loaded plugins, their hooks and how these fared."""
        return {"data": admin.plugins()}

    return Router(
        "/admin/v1",
        guards=[guard_by(token, admin.tenants.access_of)],
        tags=["admin"],
        route_handlers=[
            *org_routes(admin.tenants),
            *team_routes(admin.tenants),
            *key_routes(admin.tenants),
            *report_routes(desk),
            *ledger_routes(ledger),
            *invoice_routes(invoices, desk),
            list_models,
            list_loaded,
            turn,
            list_adapters,
            load_adapter,
            unload_adapter,
            export_ledger,
            list_plugins,
        ],
    )


def _lines(admin: Admin, access: Access) -> Iterator[bytes]:
    for entry in admin.export_ledger(access):
        yield msgspec.json.encode(entry) + b"\n"
