"""What an operator can see and do, apart from how it is asked: the admin routes and the offline CLI share it."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from llmhost.api.admin_tenants import TenantAdmin
from llmhost.config.check import is_adapter_name
from llmhost.core.errors import Conflict, InvalidValue
from llmhost.core.ports import EngineLoad
from llmhost.cost.ledger import Ledger
from llmhost.deploy.catalogue import Catalogue, Served
from llmhost.deploy.deployment import Deployment, State
from llmhost.deploy.manager import Deployments
from llmhost.deploy.replica import Replica
from llmhost.deploy.sleepers import HOST
from llmhost.hooks.registry import PluginReport, Plugins
from llmhost.tenants.budget_store import BudgetStore
from llmhost.tenants.keys import KeyStore
from llmhost.tenants.roles import OPERATOR, Access

Amounts = dict[str, str | None]


class NewAdapter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body that loads or unloads a LoRA adapter: `MODEL:NAME` and, for one that is not declared, its source."""

    adapter: str
    source: str | None = None


class Admin:
    """Operators' acts and reports as plain JSON-ready data. `deployments` is None for a node that isn't running.

    `price_of` says what everybody pays for a model now.
    """

    def __init__(
        self,
        keys: KeyStore,
        ledger: Ledger,
        plugins: Plugins,
        deployments: Deployments | None,
        price_of: Callable[[str], Amounts | None] = lambda _: None,
        budgets: BudgetStore | None = None,
    ) -> None:
        self.tenants = TenantAdmin(
            keys, None if deployments is None else deployments.catalogue.locate, budgets
        )
        self._ledger = ledger
        self._plugins = plugins
        self._deployments = deployments
        self._price_of = price_of

    async def models(self) -> list[dict[str, Any]]:
        running = self._running
        rows = [_model(d, self._price_of(d.entry.name)) for d in running.all()]
        files = await asyncio.to_thread(lambda: [running.files(d) for d in running.all()])
        return [{**row, "files": here} for row, here in zip(rows, files, strict=True)]

    def loaded(self) -> list[dict[str, Any]]:
        """`ps`: one object for each replica, and one for each model on its way or failed."""
        return [row for d in self._running.all() for row in _ps(d)]

    async def load(self, name: str) -> dict[str, Any]:
        deployment = self._running.find(name)
        await deployment.ensure_ready("operator")
        return _model_state(deployment)

    async def unload(self, name: str, *, drain_s: float) -> dict[str, Any]:
        deployment = self._running.find(name)
        await deployment.unload(drain_s=drain_s, reason="operator")
        return _model_state(deployment)

    async def sleep(self, name: str, *, drain_s: float) -> dict[str, Any]:
        deployment = self._running.find(name)
        await deployment.sleep(drain_s=drain_s, reason="operator")
        return _model_state(deployment)

    async def wake(self, name: str) -> dict[str, Any]:
        deployment = self._running.find(name)
        await deployment.wake("operator")
        return _model_state(deployment)

    async def adapters(self) -> list[dict[str, Any]]:
        """LoRA adapters that requests can name, and which of them are in memory."""
        running = self._running
        rows = [row for d in running.all() for row in _adapters(running, d)]
        files = await asyncio.to_thread(lambda: [running.presence(row["source"]) for row in rows])
        return [{**row, "files": here} for row, here in zip(rows, files, strict=True)]

    async def load_adapter(self, new: NewAdapter) -> dict[str, Any]:
        """Load an adapter, and its model if need be. With a source, one that models.toml does not declare."""
        running = self._running
        served = _named(running.catalogue, new)
        await running.load_adapter(served)
        return _adapter_row(running, served)

    async def unload_adapter(self, name: str, *, drain_s: float) -> dict[str, Any]:
        """Drop an adapter from memory once nobody uses it. One that was added at run time is forgotten."""
        running = self._running
        served = running.catalogue.locate(name)
        if served.adapter is None:
            raise InvalidValue(
                f"{name!r} is a model; an adapter is named MODEL:NAME.", param="adapter"
            )
        await running.unload_adapter(served, drain_s=drain_s)
        return {**_adapter_row(running, served), "state": "absent"}

    def export_ledger(self, access: Access = OPERATOR) -> Iterator[dict[str, Any]]:
        """Blocks while iterated."""
        return (row for row in self._ledger.export() if access.org in (None, row["org"]))

    def plugins(self) -> list[dict[str, Any]]:
        return plugin_rows(self._plugins)

    @property
    def _running(self) -> Deployments:
        if self._deployments is None:
            raise Conflict("This needs a running server. Start it with `llmhost serve`.")
        return self._deployments


def plugin_rows(plugins: Plugins) -> list[dict[str, Any]]:
    """Each plugin with its hooks and how these fared, and the same over all its hooks."""
    return [_plugin(report) for report in plugins.report()]


def _plugin(report: PluginReport) -> dict[str, Any]:
    hooks = report.hooks
    return {
        "name": report.name,
        "version": report.version,
        "origin": report.origin,
        "hooks": [hook.hook for hook in hooks],
        "calls": sum(hook.calls for hook in hooks),
        "errors": sum(hook.errors + hook.timeouts for hook in hooks),
        "p50_ms": max((hook.p50_ms for hook in hooks if hook.p50_ms is not None), default=None),
        "p99_ms": max((hook.p99_ms for hook in hooks if hook.p99_ms is not None), default=None),
        "by_hook": [msgspec.to_builtins(hook) for hook in hooks],
    }


def _model(deployment: Deployment, price: Amounts | None) -> dict[str, Any]:
    entry = deployment.entry
    return {
        "name": entry.name,
        "version": entry.ref.version,
        "engine": entry.spec.engine,
        "source": entry.spec.source if entry.spec.engine != "fake" else None,
        "aliases": list(entry.spec.aliases),
        "state": deployment.state.value,
        "reason": deployment.reason,
        "load": entry.spec.load,
        "adapters": entry.spec.adapters,
        "price": price,
    }


def _named(catalogue: Catalogue, new: NewAdapter) -> Served:
    """The adapter that is meant: a known one, or one that the source makes."""
    if new.source is None:
        served = catalogue.locate(new.adapter)
        if served.adapter is None:
            raise InvalidValue(
                f"{new.adapter!r} is a model; an adapter is named MODEL:NAME.", param="adapter"
            )
        return served
    model, _, name = new.adapter.rpartition(":")
    if not model or not is_adapter_name(name):
        raise InvalidValue(
            f"{new.adapter!r} does not name an adapter: it is written MODEL:NAME, with letters, digits, '.', '_',"
            " '-' and '/' in NAME.",
            param="adapter",
        )
    entry = catalogue.find(model)
    known = {served.adapter: served for served in catalogue.adapters(entry)}.get(name)
    if known is not None and known.source != new.source:
        raise Conflict(
            f"The adapter {known.name!r} exists with the source {known.source!r}. Unload it first, or choose another"
            " name."
            if not known.is_declared
            else f"models.toml declares the adapter {known.name!r} with the source {known.source!r}. Choose another"
            " name."
        )
    return known or Served(entry, name, new.source, is_declared=False)


def _adapters(running: Deployments, deployment: Deployment) -> list[dict[str, Any]]:
    return [
        _adapter_row(running, served) for served in running.catalogue.adapters(deployment.entry)
    ]


def _adapter_row(running: Deployments, served: Served) -> dict[str, Any]:
    loaded = [row for row in running.loaded_adapters(served.entry) if row.name == served.adapter]
    return {
        "adapter": served.name,
        "model": served.entry.name,
        "source": served.source,
        "origin": "file" if served.is_declared else "operator",
        "state": "ready" if loaded else "absent",
        "bytes": sum(row.size_bytes for row in loaded),
        "requests": sum(row.users for row in loaded),
    }


def _model_state(deployment: Deployment) -> dict[str, Any]:
    replica = deployment.held
    kv_bytes = replica.plan.kv_bytes if replica and deployment.replicas else 0
    return {
        "model": str(deployment.entry.ref),
        "state": deployment.state.value,
        "reason": deployment.reason,
        "took_s": deployment.took_s,
        "bytes": replica.plan.weights_bytes + kv_bytes if replica else 0,
    }


def _ps(deployment: Deployment) -> list[dict[str, Any]]:
    name, state = str(deployment.entry.ref), deployment.state.value
    if deployment.asleep is not None:
        replica = deployment.asleep
        row = _ps_row(name, state, replica, EngineLoad())
        return [{**row, "device": HOST, "kv_bytes": 0}]
    if not deployment.replicas:
        is_quiet = deployment.state is State.ABSENT
        return [] if is_quiet else [{"model": name, "state": state, "reason": deployment.reason}]
    return [_ps_row(name, state, one, one.engine.load()) for one in deployment.replicas]


def _ps_row(name: str, state: str, replica: Replica, load: EngineLoad) -> dict[str, Any]:
    return {
        "model": name,
        "state": state,
        "device": ",".join(replica.devices),
        "weights_bytes": replica.facts.weights_bytes,
        "kv_bytes": replica.plan.kv_bytes,
        "predicted_bytes": replica.plan.weights_bytes,
        "measured_bytes": replica.measured_bytes,
        "max_sequence_length": replica.plan.max_sequence_length,
        "running": load.running,
        "waiting": load.waiting,
        "kv_blocks_used": load.kv_blocks_used,
        "kv_blocks_total": load.kv_blocks_total,
        "since_ns": replica.ready_utc_ns,
        "load_s": replica.load_s,
        "attention": replica.facts.attends,
        "adapters": [] if replica.adapters is None else replica.adapters.names(),
    }
