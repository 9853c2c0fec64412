"""The books of a node that isn't running, for the command line: the same acts, straight on the data dir."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from llmhost.api.admin import Admin, plugin_rows
from llmhost.api.admin_tenants import MOST_ROWS
from llmhost.api.admin_wire import (
    KeyChange,
    KeyPage,
    NewKey,
    NewOrg,
    NewTeam,
    OrgChange,
    OrgPage,
    Rotation,
    TeamChange,
    TeamPage,
)
from llmhost.api.audit import AuditDesk
from llmhost.api.batches.admin import BatchRows, FileRows
from llmhost.api.budget_wire import (
    BudgetChange,
    BudgetPage,
    CreditPage,
    NewBudget,
    NewCredit,
)
from llmhost.api.budgets import BudgetAdmin
from llmhost.api.cache.desk import CacheDesk, NewPurge
from llmhost.api.costs import CostReports
from llmhost.api.invoices import InvoiceDesk, within_month
from llmhost.api.ledger import AccountPage, LedgerDesk, NewRerating
from llmhost.api.policies import NewPolicy, PolicyPage, PolicyTrial
from llmhost.api.prices import NewPrice, PriceAdmin, PricePage
from llmhost.api.report_wire import CostedPage, UsedPage, time_ns
from llmhost.api.reports import ReportDesk, query_of
from llmhost.api.reviews.desk import ReviewDesk
from llmhost.api.reviews.wire import ReviewPage, Ruling
from llmhost.config.load import LoadedSettings
from llmhost.config.schema import Settings
from llmhost.config.schema.safety import AuditSettings, ReviewSettings
from llmhost.hooks.registry import Plugins
from llmhost.host.audit import open_audit, written_down
from llmhost.host.backup import back_up, told
from llmhost.host.batches import offline_admin
from llmhost.host.books import open_books
from llmhost.host.cache import open_cache
from llmhost.host.policies import offline_policies
from llmhost.host.reviews import open_reviews
from llmhost.host.state import open_state
from llmhost.observe.clock import SystemClock
from llmhost.storage.node import DataDir
from llmhost.tenants.roles import OPERATOR

T = TypeVar("T")
Row = dict[str, Any]
Page = (
    OrgPage
    | TeamPage
    | KeyPage
    | PricePage
    | BudgetPage
    | CreditPage
    | UsedPage
    | CostedPage
    | AccountPage
    | BatchRows
    | FileRows
    | PolicyPage
    | ReviewPage
)


_READS = frozenset(
    {
        *("orgs", "org", "teams", "team", "keys", "key", "budgets", "budget", "credits"),
        *("prices", "price", "price_version", "usage", "costs", "invoice", "statement_key"),
        *("focus", "entries", "device_costs", "batches", "batch", "files"),
        *("verify_ledger", "check_sums", "accounts", "export_ledger"),
        *("audit_rows", "export_audit", "verify_audit", "close"),
        *("reviews", "review", "review_stats"),
        *("policies", "policy", "try_policy"),
        "cache",
    }
)
"""What changes nothing, and is not written to the audit log."""


@written_down(_READS)
class OfflineAdmin:
    """Owns the data dir until closed, so that no node can start in between. Raises AlreadyRunning."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = DataDir(data_dir)
        self._data_dir.acquire()
        self._runner = asyncio.Runner()
        clock = SystemClock()
        self._closing = AsyncExitStack()
        try:
            books = open_books(self._data_dir, clock, self._closing)
            state = open_state(self._data_dir, self._closing)
            reviews = open_reviews(self._data_dir, ReviewSettings(), clock, self._closing)
            self.audit = open_audit(self._data_dir, AuditSettings(), clock, self._closing)
            cache = open_cache(Settings(), self._data_dir, clock, self._closing)
        except BaseException:
            self.close()
            raise
        self._admin = Admin(books.keys, books.ledger, Plugins(), None, budgets=books.budgets)
        self._tenants = self._admin.tenants
        self._batches = offline_admin(self._data_dir, state, clock)
        self._reviews = ReviewDesk(reviews, clock, lambda: self._data_dir.webhook_secret)
        self._audit_desk = AuditDesk(self.audit)
        self._policies = offline_policies(self._data_dir, self.audit, books.keys.directory, clock)
        self._cache = CacheDesk(cache)
        self._costs = CostReports(books.costs)
        self._prices = PriceAdmin(books.prices, books.keys.directory, clock, None)
        self._reports = ReportDesk(books.reports)
        self._budgets = BudgetAdmin(books.budgets, books.keys)
        self._ledger = LedgerDesk(books.ledger, books.rerater, books.prices, clock)
        self._invoices = InvoiceDesk(books.statements, books.reports, books.keys.directory)

    def cache(self) -> Row:
        return _row(self._run(self._cache.report()))

    def purge_cache(self, *, everything: bool = False, **names: Any) -> Row:
        wanted = msgspec.convert({"everything": everything, **names}, NewPurge)
        self._cache.cache.recall()
        return _row(self._run(self._cache.purge(wanted)))

    def create_org(self, name: str, **facts: Any) -> Row:
        new = msgspec.convert({"name": name, **facts}, NewOrg)
        return _row(self._run(self._tenants.create_org(new)))

    def orgs(self) -> list[Row]:
        return _rows(lambda **page: self._tenants.list_orgs(**page))

    def org(self, name: str) -> Row:
        return _row(self._tenants.show_org(name))

    def update_org(self, name: str, **changes: Any) -> Row:
        return _row(self._run(self._tenants.update_org(name, OrgChange(**changes))))

    def create_team(self, org: str, name: str, **facts: Any) -> Row:
        new = msgspec.convert({"org": org, "name": name, **facts}, NewTeam)
        return _row(self._run(self._tenants.create_team(new)))

    def teams(self, *, org: str | None = None) -> list[Row]:
        return _rows(lambda **page: self._tenants.list_teams(org=org, **page))

    def team(self, org: str, name: str) -> Row:
        return _row(self._tenants.show_team(org, name))

    def update_team(self, org: str, name: str, **changes: Any) -> Row:
        return _row(self._run(self._tenants.update_team(org, name, TeamChange(**changes))))

    def archive_team(self, org: str, name: str) -> Row:
        return _row(self._run(self._tenants.archive_team(org, name)))

    def create_key(self, **facts: Any) -> Row:
        new = msgspec.convert(facts, NewKey)
        return _row(self._run(self._tenants.create_key(new)))

    def keys(self, *, org: str | None = None, team: str | None = None) -> list[Row]:
        return _rows(lambda **page: self._tenants.list_keys(org=org, team=team, **page))

    def key(self, key_id: str) -> Row:
        return _row(self._tenants.show_key(key_id))

    def update_key(self, key_id: str, **changes: Any) -> Row:
        change = msgspec.convert(changes, KeyChange)
        return _row(self._run(self._tenants.update_key(key_id, change)))

    def rotate_key(self, key_id: str, *, overlap_s: int) -> Row:
        return _row(self._run(self._tenants.rotate_key(key_id, Rotation(overlap_s=overlap_s))))

    def revoke_key(self, key_id: str) -> Row:
        return _row(self._run(self._tenants.revoke_key(key_id)))

    def create_budget(self, **facts: Any) -> Row:
        new = msgspec.convert(facts, NewBudget)
        return _row(self._run(self._budgets.create(new)))

    def budgets(
        self,
        *,
        org: str | None = None,
        team: str | None = None,
        key: str | None = None,
        active: bool = False,
    ) -> list[Row]:
        wanted: dict[str, Any] = {"org": org, "team": team, "key": key, "active": active or None}
        return _rows(lambda **page: self._budgets.list(**wanted, **page))

    def budget(self, budget_id: str) -> Row:
        return _row(self._run(self._budgets.show(budget_id)))

    def update_budget(self, budget_id: str, **changes: Any) -> Row:
        change = msgspec.convert(changes, BudgetChange)
        return _row(self._run(self._budgets.update(budget_id, change)))

    def end_budget(self, budget_id: str) -> Row:
        return _row(self._run(self._budgets.end(budget_id)))

    def add_credit(self, org: str, **facts: Any) -> Row:
        new = msgspec.convert(facts, NewCredit)
        return _row(self._run(self._budgets.add_credit(org, new)))

    def credits(self, org: str) -> list[Row]:
        return _rows(lambda **page: self._budgets.list_credits(org, **page))

    def set_price(self, model: str, **facts: Any) -> Row:
        new = msgspec.convert({"model": model, **facts}, NewPrice)
        return _row(self._run(self._prices.set(new)))

    def prices(
        self, *, model: str | None = None, org: str | None = None, in_force: bool = False
    ) -> list[Row]:
        wanted: dict[str, Any] = {"model": model, "org": org, "in_force": in_force}
        return _rows(lambda **page: self._run(self._prices.versions(**wanted, **page)))

    def price(self, model: str, *, org: str | None = None) -> Row:
        return _row(self._prices.current(model, org=org))

    def price_version(self, version: str) -> Row:
        return _row(self._run(self._prices.version(version)))

    def usage(self, **query: Any) -> list[Row]:
        asked = query_of(**query)
        return _rows(lambda **page: self._reports.usage(asked, **page))

    def costs(self, **query: Any) -> list[Row]:
        asked = query_of(**query)
        return _rows(lambda **page: self._reports.costs(asked, **page))

    def invoice(self, org: str, *, month: str, timezone: str = "UTC") -> Row:
        return _row(self._invoices.statement(org, month, timezone))

    def statement_key(self) -> Row:
        return _row(self._invoices.key())

    def focus(self, *, month: str | None = None, **query: Any) -> list[Row]:
        asked = query_of(by="", **query)
        return list(self._invoices.focus(asked if month is None else within_month(asked, month)))

    def entries(self, *, month: str | None = None, **query: Any) -> Iterator[Row]:
        asked = query_of(by="", **query)
        return self._invoices.entries(asked if month is None else within_month(asked, month))

    def device_costs(self, *, since: str | None = None, until: str | None = None) -> list[Row]:
        return self._costs.devices(time_ns(since, "since"), time_ns(until, "until"))

    def batches(self, *, org: str | None = None) -> list[Row]:
        return _rows(lambda **page: self._run(self._batches.batches(org=org, **page)))

    def batch(self, batch_id: str) -> Row:
        return _row(self._run(self._batches.batch(batch_id)))

    def cancel_batch(self, batch_id: str) -> Row:
        return _row(self._run(self._batches.cancel(batch_id)))

    def files(self, *, org: str | None = None) -> list[Row]:
        return _rows(lambda **page: self._run(self._batches.list_files(org=org, **page)))

    def delete_file(self, file_id: str) -> Row:
        return _row(self._run(self._batches.delete_file(file_id)))

    def reviews(self, **query: Any) -> list[Row]:
        return _rows(lambda **page: self._run(self._reviews.page(**query, **page)))

    def review(self, review_id: str) -> Row:
        return _row(self._run(self._reviews.show(review_id)))

    def review_original(self, review_id: str) -> Row:
        return _row(self._run(self._reviews.original(review_id)))

    def claim_review(self, review_id: str | None, *, org: str | None = None) -> Row:
        if review_id is None:
            return _row(self._run(self._reviews.claim_next(org=org)))
        return _row(self._run(self._reviews.claim(review_id)))

    def release_review(self, review_id: str) -> Row:
        return _row(self._run(self._reviews.release(review_id)))

    def decide_review(self, review_id: str, *, decision: str, note: str | None = None) -> Row:
        ruling = msgspec.convert({"decision": decision, "note": note}, Ruling)
        approves = ruling.decision == "approve"
        return _row(self._run(self._reviews.decide(review_id, approves=approves, note=ruling.note)))

    def escalate_review(self, review_id: str, *, note: str | None = None) -> Row:
        return _row(self._run(self._reviews.escalate(review_id, note=note)))

    def review_stats(self, *, org: str | None = None, since: str | None = None) -> Row:
        return _row(self._run(self._reviews.stats(org=org, since=since)))

    def review_webhook(self) -> Row:
        return _row(self._reviews.webhook())

    def verify_ledger(self) -> Row:
        return _row(self._ledger.verify())

    def check_sums(self) -> Row:
        return _row(self._ledger.check())

    def rebuild_sums(self) -> Row:
        return _row(self._run(self._ledger.rebuild()))

    def accounts(self) -> list[Row]:
        return _rows(lambda **page: self._ledger.accounts(**page))

    def rerate(self, body: Row) -> Row:
        return _row(self._run(self._ledger.rerate(msgspec.convert(body, NewRerating))))

    def export_ledger(self) -> Iterator[dict[str, Any]]:
        return self._admin.export_ledger()

    def audit_rows(self, *, limit: int, **wanted: str) -> list[Row]:
        return [_row(row) for row in self._audit_desk.list(OPERATOR, limit=limit, **wanted).data]

    def audit_prompt(self, row_id: str) -> Row:
        return _row(self._audit_desk.prompt(row_id))

    def export_audit(self, **wanted: str) -> Iterator[Row]:
        return map(_row, self._audit_desk.export(OPERATOR, **wanted))

    def verify_audit(self, *, head: str | None = None) -> Row:
        return _row(self._audit_desk.verify(head))

    def policies(self, org: str) -> list[Row]:
        return _rows(lambda **page: self._policies.list(org, **page))

    def policy(self, org: str, version: str) -> Row:
        return _row(self._policies.show(org, version))

    def create_policy(self, org: str, body: Row) -> Row:
        return _row(self._run(self._policies.create(org, msgspec.convert(body, NewPolicy))))

    def activate_policy(self, org: str, version: str) -> Row:
        return _row(self._run(self._policies.activate(org, version)))

    def try_policy(self, org: str, body: Row) -> Row:
        return _row(self._policies.try_out(org, msgspec.convert(body, PolicyTrial)))

    def backup(self, path: str) -> Iterator[Row]:
        return told(lambda tell: back_up(self._data_dir, Path(path), SystemClock(), tell))

    def close(self) -> None:
        """Commit what is queued and let others in. Idempotent."""
        self._run(self._closing.aclose())
        self._runner.close()
        self._data_dir.release()

    def _run(self, act: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(act)


def list_plugins(loaded: LoadedSettings) -> list[dict[str, Any]]:
    """The plugins that a node with these settings would load. Raises ConfigError for one that is broken."""
    plugins = Plugins.load(loaded.settings.plugins, folder=loaded.plugins_dir)
    try:
        return plugin_rows(plugins)
    finally:
        plugins.close()


def _row(record: msgspec.Struct) -> Row:
    row: Row = msgspec.to_builtins(record)
    return row


def _rows(list_page: Callable[..., Page]) -> list[Row]:
    """All pages of a list."""
    found: list[Row] = []
    page = list_page(limit=MOST_ROWS)
    found += map(_row, page.data)
    while page.has_more:
        page = list_page(limit=MOST_ROWS, after=page.last_id)
        found += map(_row, page.data)
    return found
