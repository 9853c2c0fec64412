"""The stages of a request's story, built from a host's parts and joined."""

from typing import TYPE_CHECKING

from llmhost.api.edge import serves_this_machine
from llmhost.host.cache import epoch_of
from llmhost.pipeline.attach import Attach
from llmhost.pipeline.authenticate import Authenticate
from llmhost.pipeline.bill import Bill
from llmhost.pipeline.cached import Cached
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.embed import Embedder
from llmhost.pipeline.execute import Execute
from llmhost.pipeline.guard import ModelGuard
from llmhost.pipeline.limit import Limit
from llmhost.pipeline.log import Log
from llmhost.pipeline.rendered import Rendered
from llmhost.pipeline.resolve import Resolve
from llmhost.pipeline.route import Route
from llmhost.pipeline.screen import ScreenStage
from llmhost.pipeline.semantic import Semantic
from llmhost.pipeline.stages import Stages
from llmhost.pipeline.store import Store
from llmhost.safety.audit import AuditJournal
from llmhost.safety.screen import Screen
from llmhost.tenants.levels import Levels
from llmhost.tenants.limiter import Limiter
from llmhost.tenants.places import Places

if TYPE_CHECKING:
    from llmhost.host.wiring import Host


def screen_of(host: "Host") -> Screen:
    """Who judges what callers and models write, who decides, and who is told."""
    return Screen(
        host.settings.safety,
        host.plugins,
        reviews=host.reviews,
        policies=host.policies,
        journal=AuditJournal(
            host.audit,
            each=host.settings.audit.each_allowed,
            decided=host.metrics.safety.decided,
        ),
        guard=ModelGuard(host.deployments, host.clock, host.tabs, host.costs.bear),
        utc_ns=host.clock.utc_ns,
    )


def stages_of(host: "Host") -> Stages:
    """The ten stages. Needs all that `host` has but who serves."""
    screen = ScreenStage(host.screen)
    cached = _cached(host, screen)
    return Stages(
        authenticate=Authenticate(
            host.books.keys, host.plugins, is_loopback=serves_this_machine(host.settings.server)
        ),
        resolve=Resolve(
            host.deployments,
            host.plugins,
            Rendered(host.cache.keys, host.cache.rules),
            Attach(host.files, screen.check_length),
        ),
        limit=Limit(_limiter(host), host.plugins, host.metrics.limits),
        screen=screen,
        cached=cached,
        route=Route(),
        execute=Execute(screen, host.clock, host.metrics, host.costs.bear),
        store=Store(host.cache, cached, host.clock),
        bill=_bill(host),
        log=Log(host.metrics, (host.analytics.record, host.observers.tell)),
    )


def _bill(host: "Host") -> Bill:
    books, settings = host.books, host.settings
    return Bill(
        books.ledger,
        books.settlements,
        books.budgets.accounts,
        books.prices,
        host.plugins,
        host.costs,
        settings.billing,
        settings.batches.price_factor,
        host.tabs,
        hit_factor=host.cache.price_factor,
        hit_fee_nano=host.cache.hit_fee_nano,
    )


def _cached(host: "Host", screen: ScreenStage) -> Cached:
    async def mark_of(context: RequestContext) -> str:
        return await host.deployments.mark(context.known_deployment, context.adapter)

    epoch = epoch_of(host.settings, host.plugins, host.books.prices, screen.policy_of)
    bear = host.costs.bear
    embedder = Embedder(host.deployments, host.clock, host.tabs, bear)
    semantic = Semantic(host.cache, embedder, host.clock, bear)
    host.closing.callback(semantic.close)
    return Cached(host.cache, screen, host.plugins, host.clock, epoch, mark_of, semantic)


def _limiter(host: "Host") -> Limiter:
    limits = host.settings.limits
    places = Places(queue_size=limits.queue_size, queue_wait_s=limits.queue_wait_s)
    host.metrics.limits.read_waiting_from(lambda: places.waiting_by_dimension)
    return Limiter(Levels(limits, host.settings.models), places, host.clock)
