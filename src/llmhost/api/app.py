"""The HTTP application: routes from a Surface, one place for errors, and the edge around them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from litestar import Litestar, Request, Response, asgi, get
from litestar.enums import ScopeType
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.spec import Server
from litestar.plugins import PluginProtocol
from litestar.plugins.core import MsgspecDIPlugin
from litestar.types import ASGIApp, ControllerRouterHandler, Receive, Scope, Send

from llmhost import __version__
from llmhost.api.admin import Admin
from llmhost.api.admin_access import guard_by
from llmhost.api.admin_routes import admin_router
from llmhost.api.audit import AuditDesk, audit_router
from llmhost.api.audited import Audited
from llmhost.api.backup import BackupDesk, backup_router
from llmhost.api.batches.admin import BatchAdmin, batch_admin_router
from llmhost.api.batches.routes import BatchDesk, batch_routes
from llmhost.api.budgets import BudgetAdmin, budget_router
from llmhost.api.cache.desk import CacheDesk
from llmhost.api.cache.routes import cache_router
from llmhost.api.chats.desk import ChatDesk
from llmhost.api.chats.routes import PATH as CHATS
from llmhost.api.chats.routes import chat_router
from llmhost.api.costs import CostReports, cost_router
from llmhost.api.decisions import decision_routes
from llmhost.api.dialect import dialect_of
from llmhost.api.door import Outflow, bearer
from llmhost.api.edge import Edge, serves_this_machine
from llmhost.api.errors import INTERNAL, error_headers, known_error
from llmhost.api.estimate import estimate_route
from llmhost.api.files.routes import CallerOf, FileDesk, file_routes
from llmhost.api.gatekeeper import Gatekeeper, Identify, vouch
from llmhost.api.idempotency import Idempotency
from llmhost.api.invoices import InvoiceDesk, key_router
from llmhost.api.json_request import JsonRequest
from llmhost.api.late import LateRoutes
from llmhost.api.ledger import LedgerDesk
from llmhost.api.lora_routes import lora_routes
from llmhost.api.message_batches.routes import MessageBatchDesk, message_batch_routes
from llmhost.api.messages import COUNT_PATH, count_route, messages_route
from llmhost.api.models import model_routes
from llmhost.api.moderation_wire import MODERATIONS_PATH
from llmhost.api.moderations import moderation_routes, with_guard
from llmhost.api.ollama.models import model_routes as ollama_models
from llmhost.api.ollama.routes import asking_routes as ollama_routes
from llmhost.api.openai import generation_route, parse_chat, parse_completion
from llmhost.api.openapi.route import OLDER_PATH, Document, OlderPath, schema_route
from llmhost.api.organization import OrganizationDesk, organization_router
from llmhost.api.policies import PolicyAdmin, policy_router
from llmhost.api.pooling import pooling_routes
from llmhost.api.prices import PriceAdmin, price_router
from llmhost.api.repeats import Repeats
from llmhost.api.reports import ReportDesk, usage_router
from llmhost.api.responses.compact import PATH as COMPACT_PATH
from llmhost.api.responses.compact import compact_route
from llmhost.api.responses.desk import Desk, scope_of
from llmhost.api.responses.prepare import prepare
from llmhost.api.responses.routes import PATH as RESPONSES_PATH
from llmhost.api.responses.routes import TOKENS_PATH, input_tokens_route, responses_route
from llmhost.api.responses.shelf import Conversations, Responses
from llmhost.api.responses.state_routes import conversation_routes, item_routes, response_routes
from llmhost.api.reviews.admin import review_admin_router
from llmhost.api.reviews.desk import ReviewDesk
from llmhost.api.reviews.routes import review_routes
from llmhost.api.router import Router
from llmhost.api.tokenize import tokenize_routes
from llmhost.api.upgrade import with_sockets
from llmhost.config.schema.server import ServerSettings
from llmhost.core.caller import Caller
from llmhost.core.errors import LlmhostError, ModelUnavailable, Overloaded
from llmhost.core.ids import new_request_id
from llmhost.core.request import Kind
from llmhost.deploy.catalogue import Catalogue
from llmhost.deploy.manager import Deployments
from llmhost.observe.metrics import CONTENT_TYPE, Metrics
from llmhost.pipeline.held import Holds
from llmhost.pipeline.processor import Processor
from llmhost.safety.audit import AuditLog

__all__ = ["App", "Surface", "build_app"]

log = logging.getLogger("llmhost.api")

AnyRequest = Request[Any, Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """What the HTTP application stands on; the host wires it."""

    settings: ServerSettings
    gatekeeper: Gatekeeper
    """Stands before all of it."""
    processor: Processor
    repeats: Repeats
    files: FileDesk
    batches: BatchDesk
    message_batches: MessageBatchDesk
    batch_admin: BatchAdmin
    reviews: ReviewDesk
    cache: CacheDesk
    holds: Holds
    idempotency: Idempotency
    responses: Desk
    chats: ChatDesk
    identify: Identify
    """Who holds a bearer, for routes that are not generation. Raises Unauthenticated."""
    catalogue: Catalogue
    deployments: Deployments
    metrics: Metrics
    admin: Admin
    audit: AuditLog
    policies: PolicyAdmin
    costs: CostReports
    prices: PriceAdmin
    budgets: BudgetAdmin
    reports: ReportDesk
    ledger: LedgerDesk
    invoices: InvoiceDesk
    backups: BackupDesk
    organizations: OrganizationDesk
    admin_token: str
    why_not_ready: Callable[[], str | None]
    why_not_healthy: Callable[[], str | None]
    outflow: Outflow | None = None
    """Counts what is sent; None where nobody wants to know."""
    plugin_routes: Sequence[tuple[str, Any]] = field(default_factory=tuple)
    """(plugin, route handler) pairs, mounted under /plugins/<plugin>/."""


@dataclass(frozen=True, slots=True)
class App:
    """The application as ASGI has it, and its routes, which whoever serves it registers before it listens."""

    asgi: ASGIApp
    routes: LateRoutes


def build_app(surface: Surface) -> App:
    generation = _generation_routes(surface)
    routes = LateRoutes(partial(_framework, surface, generation))
    if surface.plugin_routes:
        routes.register()  # what is wrong with them is told at once
    guarded = surface.gatekeeper.guard(_past_router(Audited(routes, surface.audit), generation))
    edge = Edge(
        guarded,
        origins=surface.settings.cors_origins,
        loopback_only=serves_this_machine(surface.settings),
        peers=surface.gatekeeper.peers,
        root_path=surface.settings.root_path,
    )
    counted = edge if surface.outflow is None else surface.outflow.around(edge)
    return App(surface.repeats.before(with_sockets(counted)), routes)


class Framework(Litestar):
    """Knows the one kind of structs that our routes have. Plugins may have those of pydantic and attrs, which cost."""

    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        return [*plugins, MsgspecDIPlugin()]


def _framework(surface: Surface, generation: Mapping[str, ASGIApp]) -> Litestar:
    settings = surface.settings
    guard = guard_by(surface.admin_token, surface.admin.tenants.access_of)
    document = Document()
    kind = Litestar if surface.plugin_routes else Framework
    return kind(
        route_handlers=[
            *(
                asgi(path, copy_scope=False)(route)
                for path, route in generation.items()
                if path != CHATS
            ),
            *_pooling_routes(surface),
            *_counting_routes(surface),
            *decision_routes(surface.processor, **_limits(surface)),
            *moderation_routes(surface.processor, surface.catalogue, **_limits(surface)),
            *ollama_routes(surface.processor, **_limits(surface)),
            *ollama_models(surface.deployments, surface.identify),
            *model_routes(surface.catalogue, surface.deployments, _caller_of(surface)),
            chat_router(surface.chats, surface.identify, generation[CHATS]),
            *file_routes(surface.files, _caller_of(surface)),
            *batch_routes(surface.batches, _caller_of(surface)),
            *message_batch_routes(surface.message_batches, _caller_of(surface), settings.root_path),
            *review_routes(surface.holds, _caller_of(surface)),
            *_kept_routes(surface),
            *_operation_routes(surface),
            schema_route(document),
            *lora_routes(surface.admin, surface.admin_token, drain_s=settings.drain_timeout_s),
            admin_router(
                surface.admin,
                surface.reports,
                surface.ledger,
                surface.invoices,
                surface.admin_token,
                drain_s=settings.drain_timeout_s,
            ),
            batch_admin_router(surface.batch_admin, guard),
            review_admin_router(surface.reviews, guard),
            cache_router(surface.cache, guard),
            key_router(surface.invoices),
            backup_router(surface.backups, guard),
            organization_router(surface.organizations, surface.invoices, surface.reports, guard),
            usage_router(surface.reports, guard),
            cost_router(surface.costs, guard),
            price_router(surface.prices, guard),
            budget_router(surface.budgets, guard),
            audit_router(AuditDesk(surface.audit), guard),
            policy_router(surface.policies, guard),
            *(
                Router(f"/plugins/{name}", route_handlers=[route])
                for name, route in surface.plugin_routes
            ),
        ],
        exception_handlers={Exception: _answer_error},
        request_class=JsonRequest,
        openapi_config=OpenAPIConfig(
            title="llmhost",
            version=__version__,
            path=OLDER_PATH,
            servers=[Server(settings.root_path or "/")],
            render_plugins=[OlderPath(document)],  # the pages load scripts of third parties
        ),
        logging_config=None,
        request_max_body_size=settings.max_body_bytes,
    )


def _past_router(app: ASGIApp, routes: Mapping[str, ASGIApp]) -> ASGIApp:
    """The app, with these of its routes called directly: they need nothing of what the framework does on the way."""

    async def direct(scope: Scope, receive: Receive, send: Send) -> None:
        route = app
        if scope["type"] == ScopeType.HTTP and (
            scope["path"] != CHATS or scope["method"] == "POST"
        ):
            route = routes.get(scope["path"], app)
        await route(scope, receive, send)

    return direct


def _generation_routes(surface: Surface) -> dict[str, ASGIApp]:
    limits = _limits(surface)
    processor, repeats = surface.processor, surface.repeats
    again: dict[str, Any] = {"learn": repeats.learn, "streams": repeats.streams}
    return {
        CHATS: generation_route(
            processor, Kind.CHAT, parse_chat, keep=surface.chats.keep, **again, **limits
        ),
        "/v1/completions": generation_route(
            processor, Kind.COMPLETION, parse_completion, **again, **limits
        ),
        "/v1/messages": messages_route(processor, **limits),
        RESPONSES_PATH: responses_route(processor, surface.responses, surface.outflow, **limits),
        COMPACT_PATH: compact_route(processor, surface.responses, **limits),
    }


def _pooling_routes(surface: Surface) -> list[ControllerRouterHandler]:
    return [*pooling_routes(surface.processor, **_limits(surface))]


def _counting_routes(surface: Surface) -> list[ControllerRouterHandler]:
    """They take what models are asked, and ask none."""
    given = (surface.processor, surface.identify, surface.settings.max_body_bytes)
    prepares = {
        RESPONSES_PATH: partial(prepare, surface.processor, surface.responses),
        MODERATIONS_PATH: partial(with_guard, surface.catalogue),
    }
    routes = {
        "/v1/estimate": estimate_route(*given, prepares=prepares),
        COUNT_PATH: count_route(*given),
    }
    routes[TOKENS_PATH] = input_tokens_route(given[0], surface.responses, *given[1:])
    return [
        *(asgi(path, copy_scope=False)(route) for path, route in routes.items()),
        *tokenize_routes(surface.processor, surface.catalogue, *given[1:]),
    ]


def _limits(surface: Surface) -> dict[str, Any]:
    settings = surface.settings
    return {
        "max_body_bytes": settings.max_body_bytes,
        "heartbeat_s": settings.heartbeat_s,
        "idempotency": surface.idempotency,
        "holds": surface.holds,
    }


def _caller_of(surface: Surface) -> CallerOf:
    async def caller_of(request: AnyRequest) -> Caller:
        caller = await surface.identify(bearer(request.scope), dict(request.headers))
        vouch(request.scope)
        return caller

    return caller_of


def _kept_routes(surface: Surface) -> list[ControllerRouterHandler]:
    """What callers have the server keep."""

    caller_of = _caller_of(surface)

    async def scope(request: AnyRequest) -> str:
        return scope_of(await caller_of(request))

    conversations = Conversations(surface.responses, surface.files.creation)
    return [
        *response_routes(Responses(surface.responses, surface.settings.heartbeat_s), scope),
        *conversation_routes(conversations, scope, caller_of),
        *item_routes(conversations, scope, caller_of),
    ]


def _operation_routes(surface: Surface) -> list[ControllerRouterHandler]:
    @get("/health", tags=["operation"], sync_to_thread=False)
    def health() -> dict[str, str]:
        """Live: the process answers, and no model hangs in a step."""
        why = surface.why_not_healthy()
        if why is not None:
            raise ModelUnavailable(why)
        return {"status": "ok"}

    @get("/ready", tags=["operation"], sync_to_thread=False)
    def ready() -> dict[str, str]:
        """Would accept work: models that load at start have loaded, no drain is under way, the ledger can be
        written."""
        why = surface.why_not_ready()
        if why is not None:
            raise Overloaded(why, retry_after_s=1)
        return {"status": "ready"}

    @get("/metrics", tags=["operation"], media_type="text/plain")
    async def metrics() -> Response[bytes]:
        """Prometheus text."""
        kind = CONTENT_TYPE.removesuffix("; charset=utf-8")  # which is added to it
        return Response(surface.metrics.render(), media_type=kind)

    return [health, ready, metrics]


def _answer_error(request: AnyRequest, error: Exception) -> Response[dict[str, Any]]:
    known: LlmhostError = known_error(error, f"{request.scope['method']} {request.scope['path']}")
    name, dialect = new_request_id(), dialect_of(request.scope)
    headers = {"x-request-id": name, **error_headers(known)}
    if dialect.id_header is not None:
        headers[dialect.id_header] = name
    if known is INTERNAL:
        log.error("api.failed request=%s", name, exc_info=error)
    return Response(
        dialect.error(known, name),
        status_code=known.status,
        headers=headers,
        media_type="application/json",
    )
