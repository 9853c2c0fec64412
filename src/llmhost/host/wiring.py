"""One node, built from settings and joined. It decides nothing."""

import asyncio
import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from llmhost.api.app import App, build_app
from llmhost.api.batches.line_routes import line_routes
from llmhost.api.door import Outflow
from llmhost.api.edge import serves_this_machine
from llmhost.api.idempotency import Idempotency
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
from llmhost.host.batches import Deferred, open_deferred, open_files
from llmhost.host.books import Books, open_books
from llmhost.host.cache import keep_learning, measure_cache, open_cache, recall
from llmhost.host.chores import Chores
from llmhost.host.gauges import Gauges
from llmhost.host.policies import open_policies
from llmhost.host.reviews import measure, open_holds, open_reviews, open_webhook
from llmhost.host.stages import screen_of, stages_of
from llmhost.host.state import Forgets, open_responses, open_state
from llmhost.host.surface import surface_of
from llmhost.observe.budgets import OrgBudget
from llmhost.observe.clock import SystemClock
from llmhost.observe.metrics import Metrics
from llmhost.pipeline.processor import Processor
from llmhost.pipeline.tabs import Tabs
from llmhost.storage import analytics as traffic
from llmhost.storage.analytics import Analytics
from llmhost.storage.node import DataDir
from llmhost.storage.reader import Reader
from llmhost.storage.stored_chats import StoredChats
from llmhost.storage.writer import Writer

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
        self.closing = AsyncExitStack()
        """Whatever a part leaves to be closed with the node."""
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
        if not self.deployments.is_settled:
            return "Models are loading."
        return None if self.stages.bill.takes_entries else "The ledger can't be written."

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
        self.books = await asyncio.to_thread(open_books, self.data_dir, self.clock, self.closing)
        self._check_address()
        self.audit = await asyncio.to_thread(
            open_audit, self.data_dir, self.settings.audit, self.clock, self.closing
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
            open_answers, self.data_dir, self.settings.idempotency, self.clock, self.closing
        )
        self.state = await asyncio.to_thread(open_state, self.data_dir, self.closing)
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
            open_reviews, self.data_dir, self.settings.reviews, self.clock, self.closing
        )
        measure(self.reviews, self.metrics.reviews, self.clock)
        self.cache = await asyncio.to_thread(
            open_cache, self.settings, self.data_dir, self.clock, self.closing
        )
        self.observers = Observers(self.plugins)
        self.closing.push_async_callback(self.observers.close)
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
        self.screen = screen_of(self)
        await asyncio.to_thread(self.policies.prepare_with, self.screen.prepare)
        self.files = await asyncio.to_thread(
            open_files, self.settings, self.data_dir, self.state, self.clock
        )
        self.stages = stages_of(self)
        self.processor = Processor(
            self.stages, self.clock, write_share=self.settings.server.write_share
        )
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
            bill=self.stages.bill,
            books=self.books,
        )
        surface = surface_of(self)
        self.repeats = surface.repeats
        self.app = build_app(surface)
        self._show_gauges()
        await self._start_chores()

    def _show_gauges(self) -> None:
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

    async def _start_chores(self) -> None:
        """Whatever runs beside requests."""
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
        self.closing.callback(writer.close)
        reader = Reader(path)
        self.closing.callback(reader.close)
        analytics = Analytics(writer, reader, node_id=self.data_dir.node_id)
        self.closing.callback(analytics.hand_over)
        return analytics

    def _open_registry(self) -> tuple[list[ModelEntry], Registry]:
        path = self.data_dir.registry_db
        writer = Writer(path, synchronous="NORMAL", migrations=[deploy_registry.SCHEMA])
        self.closing.callback(writer.close)
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

    def _open_deferred(self) -> Deferred:
        return open_deferred(
            self.settings,
            self.state,
            self.files,
            self.clock,
            processor=self.processor,
            routes=line_routes(self.processor, self.responses, self.deployments.catalogue),
            bill=self.stages.bill,
            books=self.books,
            metrics=self.metrics,
        )

    def _org_budgets(self) -> Iterable[OrgBudget]:
        for budget, now in self.books.budgets.accounts.org_standings(self.clock.utc_ns()):
            yield OrgBudget(budget.org, budget.period.value, now.limit, now.spent, now.held)

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
        await self.closing.aclose()
        self.plugins.close()


async def _until(is_true: Any, timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not is_true() and loop.time() < deadline:  # noqa: ASYNC110 - a drain is rare and short
        await asyncio.sleep(0.01)
