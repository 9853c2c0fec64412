"""One node, built from settings and joined. It decides nothing."""

import asyncio
import logging
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from llmhost.api.admin import Admin
from llmhost.api.app import App, Surface, build_app
from llmhost.api.backup import BackupDesk
from llmhost.api.batches.line_routes import line_routes
from llmhost.api.budgets import BudgetAdmin
from llmhost.api.cache.desk import CacheDesk
from llmhost.api.chats.desk import ChatDesk
from llmhost.api.costs import CostReports
from llmhost.api.door import Outflow
from llmhost.api.edge import serves_this_machine
from llmhost.api.gatekeeper import Gatekeeper
from llmhost.api.idempotency import Idempotency
from llmhost.api.invoices import InvoiceDesk
from llmhost.api.ledger import LedgerDesk
from llmhost.api.organization import OrganizationDesk
from llmhost.api.peers import Peers
from llmhost.api.policies import PolicyAdmin
from llmhost.api.prices import PriceAdmin
from llmhost.api.repeats import Repeats
from llmhost.api.reports import ReportDesk
from llmhost.api.reviews.desk import ReviewDesk
from llmhost.config.schema import Settings
from llmhost.core.errors import ConfigError
from llmhost.core.events import DeploymentChanged
from llmhost.core.ports import Clock
from llmhost.cost.attribution import TrueCosts
from llmhost.cost.rates import node_rates
from llmhost.deploy import registry as deploy_registry
from llmhost.deploy.catalogue import Catalogue, ModelEntry
from llmhost.deploy.effects import LoadEffects
from llmhost.deploy.manager import Deployments
from llmhost.deploy.registry import Registry
from llmhost.engines.kinds import EngineKind, built_in
from llmhost.gpu.devices import Devices
from llmhost.hooks.call import collect, shut_down, start_up
from llmhost.hooks.registry import Plugins
from llmhost.hooks.tell import Observers
from llmhost.host.answers import open_answers
from llmhost.host.audit import keep_pruning, open_audit
from llmhost.host.backup import back_up, told
from llmhost.host.batches import Deferred, open_deferred, open_files
from llmhost.host.books import Books, open_books
from llmhost.host.cache import epoch_of, keep_learning, measure_cache, open_cache, recall
from llmhost.host.chores import Chores
from llmhost.host.gauges import Gauges
from llmhost.host.policies import open_policies
from llmhost.host.reviews import measure, open_holds, open_reviews, open_webhook
from llmhost.host.state import Forgets, open_responses, open_state
from llmhost.observe.budgets import OrgBudget
from llmhost.observe.clock import SystemClock
from llmhost.observe.metrics import Metrics
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
from llmhost.pipeline.processor import Processor
from llmhost.pipeline.rendered import Rendered
from llmhost.pipeline.resolve import Resolve
from llmhost.pipeline.route import Route
from llmhost.pipeline.screen import ScreenStage
from llmhost.pipeline.semantic import Semantic
from llmhost.pipeline.short_run import ShortRuns
from llmhost.pipeline.short_way import ShortWay
from llmhost.pipeline.stages import Stages
from llmhost.pipeline.store import Store
from llmhost.pipeline.tabs import Tabs
from llmhost.safety.audit import AuditJournal
from llmhost.safety.defaults import CountedJournal
from llmhost.safety.screen import Screen
from llmhost.storage import analytics as traffic
from llmhost.storage.analytics import Analytics
from llmhost.storage.node import DataDir
from llmhost.storage.reader import Reader
from llmhost.storage.stored_chats import StoredChats
from llmhost.storage.writer import Writer
from llmhost.tenants.levels import Levels
from llmhost.tenants.limiter import Limiter
from llmhost.tenants.places import Places
from llmhost.tenants.strangers import Strangers

log = logging.getLogger("llmhost.host")

ANALYTICS_LINGER_S = 0.1
"""Rows gather for so long: nobody waits for them, and a commit costs the same for all of a moment."""
STOP_S = 5.0
"""How long sequences that were cut may take to say so before their engine is stopped."""


class Host:
    """Use as `async with Host(settings, data_dir) as host`; then serve `host.app.asgi`. Owns everything it builds."""

    app: App
    books: Books
    deployments: Deployments
    processor: Processor
    analytics: Analytics

    def __init__(
        self,
        settings: Settings,
        data_dir: DataDir,
        *,
        plugins: Plugins | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings
        self.data_dir = data_dir
        self.plugins = plugins or Plugins()
        self.clock = clock or SystemClock()
        self.metrics = Metrics()
        self.admin_token = secrets.token_urlsafe(32)
        self.is_draining = False
        self._closing = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Host":
        try:
            await self._build()
            await start_up(self.plugins, self)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    # ------------------------------------------------------------ what a running node does

    def start_loading(self) -> "asyncio.Task[None]":
        """Load the models that load at start, while requests are answered already."""
        loading = asyncio.create_task(self.deployments.load_at_start())
        self._tasks.append(loading)
        return loading

    def why_not_ready(self) -> str | None:
        if self.is_draining:
            return "The server is shutting down."
        return None if self.deployments.is_settled else "Models are loading."

    def why_not_healthy(self) -> str | None:
        """Names the models that hang in a step; None while none does."""
        hung = [(name, load.hung_s) for name, load in self.deployments.loads() if load.hung_s]
        if not hung:
            return None
        named = ", ".join(f"{name} for {seconds:.0f} s" for name, seconds in hung)
        return f"A step hangs: {named}. The log line engine.hangs says where."

    async def drain(self, timeout_s: float) -> int:
        """Refuse new requests and wait for those that run; cut what is left after `timeout_s`. How many were cut.

        Loads go on for as long as requests may wait for them, and are given up then.
        """
        self.is_draining = True
        if hasattr(self, "deferred"):
            self.deferred.runner.drain()
        self.processor.drain()
        await _until(lambda: self.processor.in_flight == 0, timeout_s)
        cut = self.processor.in_flight
        self.deployments.stop_loading()
        if cut:
            self.processor.cancel_all()
            await _until(lambda: self.processor.in_flight == 0, STOP_S)
        return cut

    @property
    def is_reading(self) -> bool:
        """A thread still reads or fetches a model's files, which it can't be stopped from."""
        return self.deployments.is_reading

    # ------------------------------------------------------------ wiring

    async def _build(self) -> None:
        self.books = await asyncio.to_thread(open_books, self.data_dir, self.clock, self._closing)
        self._check_address()
        self.audit = await asyncio.to_thread(
            open_audit, self.data_dir, self.settings.audit, self.clock, self._closing
        )
        self.policies = await asyncio.to_thread(
            open_policies,
            self.data_dir,
            self.settings.safety,
            self.audit,
            self.clock,
            self.books.world,
        )
        self.analytics = await asyncio.to_thread(self._open_analytics)
        self.answers = await asyncio.to_thread(
            open_answers, self.data_dir, self.settings.idempotency, self.clock, self._closing
        )
        self.state = await asyncio.to_thread(open_state, self.data_dir, self._closing)
        self.responses = await asyncio.to_thread(
            open_responses,
            self.data_dir,
            self.state,
            self.clock,
            self.settings.state.response_bytes_per_team,
        )
        self.chats = StoredChats(
            self.state,
            node_id=self.data_dir.node_id,
            most_bytes_per_org=self.settings.state.chat_bytes_per_org,
        )
        self.reviews = await asyncio.to_thread(
            open_reviews, self.data_dir, self.settings.reviews, self.clock, self._closing
        )
        measure(self.reviews, self.metrics.reviews, self.clock)
        self.cache = await asyncio.to_thread(
            open_cache, self.settings, self.data_dir, self.clock, self._closing
        )
        self.observers = Observers(self.plugins)
        self._closing.push_async_callback(self.observers.close)
        self.outflow = Outflow()
        rates = node_rates(self.settings.costs)
        self.devices = Devices(self.settings.devices, self.clock, rates.of_device)
        self.costs = TrueCosts(
            rates,
            self.clock,
            self.books.costs,
            lanes=self.devices.lanes,
            sent_bytes=lambda: self.outflow.sent_bytes,
            is_shown=self.settings.costs.shown_to_callers,
        )
        await asyncio.to_thread(self.books.costs.end_open_loads)
        entries, registry = await asyncio.to_thread(self._open_registry)
        self.deployments = self._deployments(entries, registry)
        await asyncio.to_thread(recall, self.cache, entries)
        measure_cache(self.cache, self.metrics.cache, [str(entry.ref) for entry in entries])
        await self.books.prices.declare({entry.name: entry.spec.price for entry in entries})
        self.tabs = Tabs(self.costs.bear)
        self.screen = self._screen()
        await asyncio.to_thread(self.policies.prepare_with, self.screen.prepare)
        self.files = await asyncio.to_thread(
            open_files, self.settings, self.data_dir, self.state, self.clock
        )
        self.processor = self._processor()
        self.idempotency = Idempotency(
            self.answers, self.settings.idempotency, self.metrics.answer_repeated
        )
        self.deferred = await asyncio.to_thread(self._open_deferred)
        self.holds = open_holds(
            self.data_dir,
            self.reviews,
            self.clock,
            processor=self.processor,
            responses=self.responses,
            catalogue=self.deployments.catalogue,
            bill=self.bill,
            books=self.books,
        )
        self.app = self._app()
        gauges = Gauges(
            self.deployments,
            self.devices,
            self.analytics,
            self.costs,
            self.books.ledger,
            self.audit,
        )
        self.metrics.read_gauges_from(gauges)
        self.metrics.budgets.read_from(
            lambda: self.books.budgets.accounts.refusals,
            self._org_budgets if self.settings.billing.budget_metrics else tuple,
        )
        chores = Chores(
            self.books,
            self.analytics,
            self.answers,
            self._kept(),
            self.settings.state,
            self.costs,
            self.clock,
            self.processor.has,
        )
        self._tasks += chores.start()
        self._tasks.append(asyncio.create_task(self.audit.keep_trying()))
        self._tasks.append(asyncio.create_task(keep_pruning(self.audit, self.policies.days)))
        self._tasks.append(asyncio.create_task(self.metrics.threads.watch_loop()))
        await self.deferred.runner.start()
        self._tasks.append(asyncio.create_task(self.deferred.keep_forgetting()))
        self._tasks.append(asyncio.create_task(keep_learning(self.cache)))
        await self.holds.start()
        self._tasks.append(asyncio.create_task(self.reviews.keep_time()))
        webhook = open_webhook(self.data_dir, self.reviews, self.clock, self.metrics.reviews)
        if webhook is not None:
            self._tasks.append(asyncio.create_task(webhook.run()))

    def _kept(self) -> Sequence[Forgets]:
        """All who keep something for callers in `state.db`."""
        return (self.responses.store, self.chats, self.deferred.batches.store)

    def _check_address(self) -> None:
        """An open address needs a key: nobody serves strangers by accident."""
        host = self.settings.server.host
        if not serves_this_machine(self.settings.server) and not self.books.keys.has_keys:
            raise ConfigError(
                f"Serving on {host} lets other machines in, and no API key exists yet. Make one first:\n"
                "  llmhost orgs create NAME && llmhost keys create --org NAME"
            )

    def _open_analytics(self) -> Analytics:
        path = self.data_dir.analytics_db
        writer = Writer(
            path, synchronous="NORMAL", migrations=[traffic.SCHEMA], linger_s=ANALYTICS_LINGER_S
        )
        self._closing.callback(writer.close)
        reader = Reader(path)
        self._closing.callback(reader.close)
        return Analytics(writer, reader, node_id=self.data_dir.node_id)

    def _open_registry(self) -> tuple[list[ModelEntry], Registry]:
        path = self.data_dir.registry_db
        writer = Writer(path, synchronous="NORMAL", migrations=[deploy_registry.SCHEMA])
        self._closing.callback(writer.close)
        registry = Registry(writer, node_id=self.data_dir.node_id, clock=self.clock)
        return registry.declare(self.settings.models, self.data_dir.path / "models"), registry

    def _deployments(self, entries: Sequence[ModelEntry], registry: Registry) -> Deployments:
        effects = LoadEffects(
            kinds=self._engine_kinds(),
            devices=self.devices,
            models_dir=self.data_dir.path / "models",
            clock=self.clock,
            observe_steps=self.metrics.step_observer,
            costs=self.costs,
        )

        def on_change(event: DeploymentChanged) -> None:
            registry.record(event)
            self.observers.tell(event)

        return Deployments(Catalogue(entries), effects, self.clock, on_change, self.books.world)

    def _engine_kinds(self) -> Mapping[str, EngineKind]:
        """The built-in engines, and those that plugins registered: objects with a `name` and EngineKind's methods."""
        registered = {
            found.item.name: found.item for found in collect(self.plugins, "register_engines")
        }
        kinds = {**built_in(self.data_dir.path), **registered}
        for name, spec in self.settings.models.items():
            if spec.engine not in kinds:
                known = ", ".join(sorted(kinds))
                raise ConfigError(
                    f"[models.{name}] engine {spec.engine!r} is unknown; there is: {known}."
                )
        return kinds

    def _processor(self) -> Processor:
        plugins, clock = self.plugins, self.clock
        screen = ScreenStage(self.screen)
        self.authenticate = Authenticate(
            self.books.keys, plugins, is_loopback=serves_this_machine(self.settings.server)
        )
        self.bill = Bill(
            self.books.ledger,
            self.books.settlements,
            self.books.budgets.accounts,
            self.books.prices,
            plugins,
            self.costs,
            self.settings.billing,
            self.settings.batches.price_factor,
            self.tabs,
            hit_factor=self.cache.price_factor,
        )
        cached = self._cached(screen)
        stages = Stages(
            authenticate=self.authenticate,
            resolve=Resolve(
                self.deployments,
                plugins,
                Rendered(self.cache.keys, self.cache.rules),
                Attach(self.files, screen.check_length),
            ),
            limit=Limit(self._limiter(), plugins, self.metrics.limits),
            screen=screen,
            cached=cached,
            route=Route(),
            execute=Execute(screen, clock, self.metrics, self.costs.bear),
            store=Store(self.cache, cached, clock),
            bill=self.bill,
            log=Log(self.metrics, (self.analytics.record, self.observers.tell)),
        )
        self.stages = stages
        return Processor(stages, clock, write_share=self.settings.server.write_share)

    def _screen(self) -> Screen:
        """Who judges what callers and models write, who decides, and who is told."""
        return Screen(
            self.settings.safety,
            self.plugins,
            reviews=self.reviews,
            policies=self.policies,
            journal=CountedJournal(
                AuditJournal(self.audit, each=self.settings.audit.each_allowed),
                self.metrics.safety.decided,
            ),
            guard=ModelGuard(self.deployments, self.clock, self.tabs, self.costs.bear),
            utc_ns=self.clock.utc_ns,
        )

    def _cached(self, screen: ScreenStage) -> Cached:
        async def mark_of(context: RequestContext) -> str:
            return await self.deployments.mark(context.known_deployment, context.adapter)

        epoch = epoch_of(self.settings, self.plugins, self.books.prices, screen.policy_of)
        bear = self.costs.bear
        embedder = Embedder(self.deployments, self.clock, self.tabs, bear)
        semantic = Semantic(self.cache, embedder, self.clock, bear)
        self._closing.callback(semantic.close)
        return Cached(self.cache, screen, self.plugins, self.clock, epoch, mark_of, semantic)

    def _open_deferred(self) -> Deferred:
        return open_deferred(
            self.settings,
            self.state,
            self.files,
            self.clock,
            processor=self.processor,
            routes=line_routes(self.processor, self.responses, self.deployments.catalogue),
            bill=self.bill,
            books=self.books,
            metrics=self.metrics,
        )

    def _limiter(self) -> Limiter:
        limits = self.settings.limits
        places = Places(queue_size=limits.queue_size, queue_wait_s=limits.queue_wait_s)
        self.metrics.limits.read_waiting_from(lambda: places.waiting_by_dimension)
        return Limiter(Levels(limits, self.settings.models), places, self.clock)

    def _repeats(self, gatekeeper: Gatekeeper, outflow: Outflow | None) -> Repeats:
        short_way = ShortWay(
            self.processor, self.stages, self.cache, self.plugins, self.clock, self.books.world
        )
        short_runs = ShortRuns(
            self.processor, self.stages, self.plugins, self.clock, self.books.world
        )
        return Repeats(short_way, short_runs, gatekeeper, outflow)

    def _app(self) -> App:
        prices = self._price_admin()
        gatekeeper = Gatekeeper(
            Strangers(self.settings.limits.failed_auth_per_minute),
            Peers(self.settings.limits.trusted_proxies),
            self.metrics.limits,
            self.clock,
            self.admin_token,
        )
        outflow = None if self.costs.rates.egress.is_free else self.outflow
        self.repeats = self._repeats(gatekeeper, outflow)
        return build_app(
            Surface(
                settings=self.settings.server,
                gatekeeper=gatekeeper,
                processor=self.processor,
                repeats=self.repeats,
                files=self.deferred.files,
                batches=self.deferred.batches,
                message_batches=self.deferred.message_batches,
                batch_admin=self.deferred.admin,
                holds=self.holds,
                reviews=ReviewDesk(self.reviews, self.clock, lambda: self.data_dir.webhook_secret),
                idempotency=self.idempotency,
                responses=self.responses,
                chats=ChatDesk(self.chats, self.clock),
                identify=self.authenticate.identify,
                catalogue=self.deployments.catalogue,
                deployments=self.deployments,
                metrics=self.metrics,
                admin=Admin(
                    self.books.keys,
                    self.books.ledger,
                    self.plugins,
                    self.deployments,
                    prices.listed,
                    self.books.budgets,
                ),
                audit=self.audit,
                policies=PolicyAdmin(self.policies, self.audit, self.books.keys.directory),
                cache=CacheDesk(self.cache),
                costs=CostReports(self.books.costs, self.costs.bring_up_to_date),
                prices=prices,
                budgets=BudgetAdmin(self.books.budgets, self.books.keys),
                reports=ReportDesk(self.books.reports),
                backups=BackupDesk(self._back_up),
                ledger=LedgerDesk(
                    self.books.ledger, self.books.rerater, self.books.prices, self.clock
                ),
                organizations=OrganizationDesk(
                    self.books.reports, self.books.statements, self.clock
                ),
                invoices=InvoiceDesk(
                    self.books.statements, self.books.reports, self.books.keys.directory
                ),
                outflow=outflow,
                admin_token=self.admin_token,
                why_not_ready=self.why_not_ready,
                why_not_healthy=self.why_not_healthy,
                plugin_routes=[
                    (found.plugin, found.item) for found in collect(self.plugins, "register_routes")
                ],
            )
        )

    def _back_up(self, path: Path) -> Iterator[dict[str, Any]]:
        return told(partial(back_up, self.data_dir, path, self.clock))

    def _org_budgets(self) -> Iterable[OrgBudget]:
        for budget, now in self.books.budgets.accounts.org_standings(self.clock.utc_ns()):
            yield OrgBudget(budget.org, budget.period.value, now.limit, now.spent, now.held)

    def _price_admin(self) -> PriceAdmin:
        catalogue = self.deployments.catalogue
        return PriceAdmin(
            self.books.prices,
            self.books.keys.directory,
            self.clock,
            lambda name: catalogue.find(name).name,
        )

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "processor"):
            await self.drain(0.0)
            self.books.settlements.hand_over()
            if hasattr(self, "deferred"):
                await self.deferred.runner.close()
            if hasattr(self, "holds"):
                await self.holds.close()
            await self.deployments.unload_all(drain_s=0.0)
            if hasattr(self, "idempotency"):
                await self.idempotency.close()
            await self.responses.runs.close()
            await self.costs.check()
        await shut_down(self.plugins, self)
        await self._closing.aclose()
        self.plugins.close()


async def _until(is_true: Any, timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not is_true() and loop.time() < deadline:  # noqa: ASYNC110 - a drain is rare and short
        await asyncio.sleep(0.01)
