"""What an operator sees and does of the ledger: its proof, its accounts, its sums, and rating a period again."""

import asyncio
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict

import msgspec
from litestar import get, post
from litestar.types import ControllerRouterHandler

from llmhost.api.admin_tenants import PAGE_ROWS, page_of
from llmhost.api.params import FromQuery, JSONBody
from llmhost.api.prices import AMOUNTS, NewPrice, rates_in
from llmhost.api.report_wire import time_ns
from llmhost.core.errors import InvalidValue
from llmhost.core.ids import new_request_id
from llmhost.core.ports import Clock
from llmhost.core.units import nano_to_dollars
from llmhost.cost.ledger import Ledger
from llmhost.cost.prices import PriceBook
from llmhost.cost.pricing import Price
from llmhost.cost.rerate import Outcomes, Rerater, Rerating
from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.ledger")

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNNAMED = "none yet"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the ledger is whole. `head` is the last good entry's hash: note it somewhere else now and then."""

    ok: bool
    entries: int
    head: str
    problem: str | None


class SumsVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """How many sums of each table are not what their entries add up to."""

    ok: bool
    drift: dict[str, int]


class AccountRow(msgspec.Struct, frozen=True, kw_only=True):
    """An account: what was booked to its two sides, and debits less credits. An organisation's is what it owes."""

    account: str
    debit_nano: int
    credit_nano: int
    balance_nano: int
    balance_usd: str


class AccountPage(msgspec.Struct, frozen=True, kw_only=True):
    """Accounts by name; `sum_nano` is that of all balances, those on other pages too: 0."""

    data: list[AccountRow]
    sum_nano: int
    has_more: bool
    last_id: str | None


class NewRerating(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body that rates a period again: a model's requests of `since` <= time < `until`, now when absent.

    At a `price` version, or at amounts in dollars per million tokens. Lines of batches and kept answers pay their part
    of it. An organisation with a price of its own is rated again where `org` names it, and what a plugin quoted where
    `was` names the version that it was charged by. Without `apply` nothing is changed. An `id` that was applied before
    changes nothing more.
    """

    model: str
    since: str
    until: str | None = None
    org: str | None = None
    was: str | None = None
    price: str | None = None
    input: str | None = None
    cached_input: str | None = None
    output: str | None = None
    reasoning: str | None = None
    embedding: str | None = None
    request: str | None = None
    apply: bool = False
    id: str | None = None


class RerateRow(msgspec.Struct, frozen=True, kw_only=True):
    """One organisation's requests: how many there are, how many cost something else, and what all of them cost."""

    org: str
    requests: int
    changed: int
    before_nano: int
    after_nano: int
    difference_nano: int
    difference_usd: str


class RerateResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was changed, or would be."""

    id: str
    applied: bool
    price: str
    data: list[RerateRow]
    difference_nano: int
    difference_usd: str


class LedgerDesk:
    """Acts on the ledger, for a running node and a stopped one. What does not say `async` blocks."""

    def __init__(self, ledger: Ledger, rerater: Rerater, prices: PriceBook, clock: Clock) -> None:
        self._ledger = ledger
        self._rerater = rerater
        self._prices = prices
        self._clock = clock

    def verify(self) -> Verdict:
        """Walk the hash chain; compare sums and rows of true cost with the entries."""
        audit = self._ledger.audit()
        chain = audit.chain
        return Verdict(
            ok=audit.is_intact, entries=chain.rows, head=chain.head, problem=audit.problem
        )

    def check(self) -> SumsVerdict:
        """Compare the sums alone."""
        drift = self._ledger.drift()
        return SumsVerdict(ok=not any(drift.values()), drift=drift)

    async def rebuild(self) -> SumsVerdict:
        """Make the sums anew. Entries wait meanwhile."""
        await self._ledger.rebuild_sums()
        log_event(log, "ledger.sums_rebuilt", why="operator")
        return await asyncio.to_thread(self.check)

    def accounts(self, *, limit: int = PAGE_ROWS, after: str | None = None) -> AccountPage:
        """All accounts and what they hold. Raises InvalidValue."""
        rows = [
            AccountRow(
                account=each.account,
                debit_nano=each.debit_nano,
                credit_nano=each.credit_nano,
                balance_nano=each.balance_nano,
                balance_usd=nano_to_dollars(each.balance_nano),
            )
            for each in self._ledger.accounts()
        ]
        page, has_more = page_of(rows, lambda row: row.account, limit, after)
        return AccountPage(
            data=list(page),
            sum_nano=sum(row.balance_nano for row in rows),
            has_more=has_more,
            last_id=page[-1].account if page else None,
        )

    async def rerate(self, new: NewRerating) -> RerateResult:
        """Rate a period again, or say what would come of it. Raises InvalidValue."""
        since_ns, until_ns = time_ns(new.since, "since"), time_ns(new.until, "until")
        now_ns = self._clock.utc_ns()
        until_ns = now_ns if until_ns is None else min(until_ns, now_ns)
        assert since_ns is not None, "it is no optional field"
        if since_ns >= until_ns:
            raise InvalidValue(
                "'since' does not lie before 'until' and the present.", param="since"
            )
        if new.id is not None and not _ID.fullmatch(new.id):
            raise InvalidValue("'id' has up to 64 letters, digits, '.', '_' and '-'.", param="id")
        wanted = Rerating(
            rerate_id=new.id or f"rr_{new_request_id().removeprefix('req_')}",
            model=new.model,
            since_ns=since_ns,
            until_ns=until_ns,
            org=new.org,
            was=new.was,
            price=await self._price(new),
        )
        if new.apply:
            found = await self._rerater.apply(wanted)
            log_event(
                log,
                "ledger.rerated",
                id=wanted.rerate_id,
                model=wanted.model,
                price=wanted.price.version,
                changed=sum(each.changed for each in found),
                difference_nano=sum(each.difference_nano for each in found),
            )
        else:
            found = await self._rerater.try_out(wanted)
        return _result(wanted, found, is_applied=new.apply)

    async def _price(self, new: NewRerating) -> Price:
        amounts = {name: text for name in AMOUNTS if (text := getattr(new, name)) is not None}
        if (new.price is None) == (not amounts):
            raise InvalidValue("Give either the version of a 'price', or amounts.", param="price")
        model = new.model.partition("@")[0]
        if new.price is not None:
            found = await asyncio.to_thread(self._prices.find, new.price)
            if found is None or found.price is None or found.model != model:
                raise InvalidValue(
                    f"{new.price[:80]!r} is no price of {model[:80]!r}; `llmhost prices list` shows them.",
                    param="price",
                )
            return found.price
        rates = rates_in(NewPrice(model=model, **amounts))
        assert rates is not None, "nothing is withdrawn"
        if new.apply:
            return await self._prices.for_rerating(model, rates)
        return Price(version=_UNNAMED, **asdict(rates))


def _result(wanted: Rerating, found: Sequence[Outcomes], *, is_applied: bool) -> RerateResult:
    difference = sum(each.difference_nano for each in found)
    return RerateResult(
        id=wanted.rerate_id,
        applied=is_applied,
        price=wanted.price.version,
        data=[
            RerateRow(
                org=each.org,
                requests=each.requests,
                changed=each.changed,
                before_nano=each.before_nano,
                after_nano=each.after_nano,
                difference_nano=each.difference_nano,
                difference_usd=nano_to_dollars(each.difference_nano),
            )
            for each in found
        ],
        difference_nano=difference,
        difference_usd=nano_to_dollars(difference),
    )


def ledger_routes(desk: LedgerDesk) -> list[ControllerRouterHandler]:
    """All for the operator alone."""

    @get("/ledger/verify")
    async def verify_ledger() -> Verdict:
        """Walk the ledger's hash chain; compare sums and rows of true cost with its entries."""
        return await asyncio.to_thread(desk.verify)

    @get("/ledger/check")
    async def check_sums() -> SumsVerdict:
        """Compare the ledger's sums with its entries."""
        return await asyncio.to_thread(desk.check)

    @post("/ledger/rebuild", status_code=200)
    async def rebuild_sums() -> SumsVerdict:
        """Make the ledger's sums anew from its entries."""
        return await desk.rebuild()

    @get("/ledger/accounts")
    async def list_accounts(
        limit: FromQuery[int] = PAGE_ROWS, after: FromQuery[str | None] = None
    ) -> AccountPage:
        """Accounts by name, and what they hold."""
        return await asyncio.to_thread(desk.accounts, limit=limit, after=after)

    @post("/ledger/rerate", status_code=200)
    async def rerate(data: JSONBody[NewRerating]) -> RerateResult:
        """Rate a period again, or say what would come of it."""
        return await desk.rerate(data)

    return [verify_ledger, check_sums, rebuild_sums, list_accounts, rerate]
