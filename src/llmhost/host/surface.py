"""What a node serves over HTTP, built from a host's parts and joined."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmhost.api.admin import Admin
from llmhost.api.app import Surface
from llmhost.api.backup import BackupDesk
from llmhost.api.budgets import BudgetAdmin
from llmhost.api.cache.desk import CacheDesk
from llmhost.api.chats.desk import ChatDesk
from llmhost.api.costs import CostReports
from llmhost.api.door import Outflow
from llmhost.api.gatekeeper import Gatekeeper
from llmhost.api.invoices import InvoiceDesk
from llmhost.api.ledger import LedgerDesk
from llmhost.api.organization import OrganizationDesk
from llmhost.api.peers import Peers
from llmhost.api.policies import PolicyAdmin
from llmhost.api.prices import PriceAdmin
from llmhost.api.repeats import Repeats
from llmhost.api.reports import ReportDesk
from llmhost.api.reviews.desk import ReviewDesk
from llmhost.hooks.call import collect
from llmhost.host.backup import back_up, told
from llmhost.pipeline.short_run import ShortRuns
from llmhost.pipeline.short_way import ShortWay
from llmhost.tenants.strangers import Strangers

if TYPE_CHECKING:
    from llmhost.host.wiring import Host


def surface_of(host: "Host") -> Surface:
    """All that routes are made of. Needs all that `host` has but its app."""
    prices = _price_admin(host)
    gatekeeper = Gatekeeper(
        Strangers(host.settings.limits.failed_auth_per_minute),
        Peers(host.settings.limits.trusted_proxies),
        host.metrics.limits,
        host.clock,
        host.admin_token,
    )
    outflow = None if host.costs.rates.egress.is_free else host.outflow
    books = host.books
    return Surface(
        settings=host.settings.server,
        gatekeeper=gatekeeper,
        processor=host.processor,
        repeats=_repeats(host, gatekeeper, outflow),
        files=host.deferred.files,
        batches=host.deferred.batches,
        message_batches=host.deferred.message_batches,
        batch_admin=host.deferred.admin,
        holds=host.holds,
        reviews=ReviewDesk(host.reviews, host.clock, lambda: host.data_dir.webhook_secret),
        idempotency=host.idempotency,
        responses=host.responses,
        chats=ChatDesk(host.chats, host.clock),
        identify=host.stages.authenticate.identify,
        catalogue=host.deployments.catalogue,
        deployments=host.deployments,
        metrics=host.metrics,
        admin=Admin(
            books.keys,
            books.ledger,
            host.plugins,
            host.deployments,
            prices.listed,
            books.budgets,
        ),
        audit=host.audit,
        policies=PolicyAdmin(host.policies, host.audit, books.keys.directory),
        cache=CacheDesk(host.cache),
        costs=CostReports(books.costs, host.costs.bring_up_to_date),
        prices=prices,
        budgets=BudgetAdmin(books.budgets, books.keys),
        reports=ReportDesk(books.reports),
        backups=BackupDesk(partial(_back_up, host)),
        ledger=LedgerDesk(books.ledger, books.rerater, books.prices, host.clock),
        organizations=OrganizationDesk(books.reports, books.statements, host.clock),
        invoices=InvoiceDesk(books.statements, books.reports, books.keys.directory),
        outflow=outflow,
        admin_token=host.admin_token,
        why_not_ready=host.why_not_ready,
        why_not_healthy=host.why_not_healthy,
        plugin_routes=[
            (found.plugin, found.item) for found in collect(host.plugins, "register_routes")
        ],
    )


def _repeats(host: "Host", gatekeeper: Gatekeeper, outflow: Outflow | None) -> Repeats:
    """Who answers requests that come again word for word."""
    processor, stages, plugins = host.processor, host.stages, host.plugins
    clock, world = host.clock, host.books.world
    short_way = ShortWay(processor, stages, host.cache, plugins, clock, world)
    short_runs = ShortRuns(processor, stages, plugins, clock, world)
    most_bytes = host.settings.server.max_body_bytes
    return Repeats(short_way, short_runs, gatekeeper, outflow, most_bytes)


def _price_admin(host: "Host") -> PriceAdmin:
    catalogue = host.deployments.catalogue
    return PriceAdmin(
        host.books.prices,
        host.books.keys.directory,
        host.clock,
        lambda name: catalogue.find(name).name,
    )


def _back_up(host: "Host", path: Path) -> Iterator[dict[str, Any]]:
    return told(partial(back_up, host.data_dir, path, host.clock))
