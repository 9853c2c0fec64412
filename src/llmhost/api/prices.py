"""What can be seen and done of prices, by the operator or by a key within its organisation, and the routes for it.

Prices are dollars per million tokens as decimal strings, as in models.toml; times are UTC seconds.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
from litestar import get, post
from litestar.types import Guard

from llmhost.api.admin_access import Visitor
from llmhost.api.admin_tenants import PAGE_ROWS, page_of
from llmhost.api.admin_wire import LAST_S
from llmhost.api.params import FromPath, FromQuery, JSONBody
from llmhost.api.router import Router
from llmhost.config.check import is_model_name
from llmhost.core.errors import Conflict, InvalidValue, NotFound
from llmhost.core.ports import Clock
from llmhost.core.units import NANO, dollars_to_nano, nano_to_dollars
from llmhost.cost.prices import PriceBook, PriceVersion
from llmhost.cost.pricing import Price, Rates
from llmhost.observe.logs import log_event
from llmhost.tenants.roles import OPERATOR, Access, Right
from llmhost.tenants.teams import Directory, no_org

log = logging.getLogger("llmhost.prices")

MOST_NANO = 1_000_000 * NANO
"""Dollars for a million tokens, or for a request: what that many tokens cost still has 64 bits."""
AMOUNTS = ("input", "cached_input", "output", "reasoning", "embedding", "request")
LEAP = 10
"""A price that changes by more than this factor may be a typo."""

NameOf = Callable[[str], str]


class NewPrice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body that sets a price, from `effective_at` or at once: all of it, not what differs.

    `org` is whom it is for, everybody when absent. `withdraw` ends what holds instead. `confirm` is for a change by
    more than ten times, which is refused without it.
    """

    model: str
    org: str | None = None
    input: str | None = None
    cached_input: str | None = None
    output: str | None = None
    reasoning: str | None = None
    embedding: str | None = None
    request: str | None = None
    withdraw: bool = False
    effective_at: int | None = None
    note: str | None = None
    confirm: bool = False


class PriceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a price. `origin` is file, api or plugin:NAME; a withdrawn one has no amounts.

    A null `reasoning` is paid for as output, a null `embedding` as input. `in_force` says whether requests are
    admitted at it now.
    """

    version: str
    model: str
    org: str | None
    input: str | None
    cached_input: str | None
    output: str | None
    reasoning: str | None
    embedding: str | None
    request: str | None
    withdrawn: bool
    origin: str
    note: str | None
    created_at: int
    effective_at: int
    in_force: bool


class PricePage(msgspec.Struct, frozen=True, kw_only=True):
    """Versions, oldest first. The next page comes `after` `last_id`."""

    data: list[PriceRow]
    has_more: bool
    last_id: str | None


class PriceAdmin:
    """Acts and lists on prices. `name_of` turns any name of a model into its own, or raises that there is none.

    Without it, on a stopped node, every name is taken.
    """

    def __init__(
        self, book: PriceBook, directory: Directory, clock: Clock, name_of: NameOf | None
    ) -> None:
        self._book = book
        self._directory = directory
        self._clock = clock
        self._name_of = name_of

    async def set(self, new: NewPrice) -> PriceRow:
        """Raises InvalidValue, NotFound for model or organisation, Conflict for what must be confirmed."""
        model = self._known_model(new.model)
        if new.org is not None:
            self._directory.org(new.org)
        rates, from_ns = rates_in(new), self._effective_ns(new.effective_at)
        if new.note is not None and not (new.note.isprintable() and len(new.note) <= 200):
            raise InvalidValue("A note is at most 200 printable characters.", param="note")
        if not new.confirm:
            self._check_leap(model, new.org, rates, from_ns)
        made = await self._book.set(
            model, rates, org=new.org, effective_from_ns=from_ns, note=new.note
        )
        log_event(
            log,
            "price.set",
            version=made.version,
            model=model,
            org=new.org,
            effective_at=made.effective_from_ns // 10**9,
            by=OPERATOR.who,
        )
        return self._row(made)

    async def versions(
        self,
        access: Access = OPERATOR,
        *,
        model: str | None = None,
        org: str | None = None,
        in_force: bool = False,
        limit: int = PAGE_ROWS,
        after: str | None = None,
    ) -> PricePage:
        """All versions, or those in force now. A key sees the list prices and its organisation's own."""
        with_list = org is None and not access.is_operator
        wanted = _Wanted(
            None if model is None else self._own_name(model), self._seen(org, access), with_list
        )
        if in_force:
            held = list(filter(wanted.has, self._book.list.all_in_force(self._clock.utc_ns())))
            rows, has_more = page_of(held, lambda version: version.version, limit, after)
        else:
            rows, has_more = await self._page(wanted, access, limit, after)
        return PricePage(
            data=[self._row(version, access) for version in rows],
            has_more=has_more,
            last_id=rows[-1].version if rows else None,
        )

    async def _page(
        self, wanted: "_Wanted", access: Access, limit: int, after: str | None
    ) -> tuple[Sequence[PriceVersion], bool]:
        page_of((), str, limit, None)  # whether there is such a limit
        begin = 0 if after is None else await self._place(after, access)
        found = await asyncio.to_thread(
            self._book.page,
            model=wanted.model,
            org=wanted.org,
            with_list=wanted.with_list,
            after=begin,
            limit=limit + 1,
        )
        return found[:limit], len(found) > limit

    def current(self, model: str, access: Access = OPERATOR, *, org: str | None = None) -> PriceRow:
        """What an organisation pays now, or everybody. Raises NotFound where there is no price."""
        org, model = self._seen(org, access), self._own_name(model)
        prices, now_ns = self._book.list, self._clock.utc_ns()
        for whose in (org, None):
            version = prices.in_force(model, whose, now_ns)
            if version is not None and version.price is not None:
                return self._row(version, access)
        raise NotFound(f"The model {model[:80]!r} has no price now.", param="model")

    def listed(self, model: str) -> dict[str, str | None] | None:
        """What everybody pays for a model now, and by which version; None where it has no price."""
        price = self._book.list.of(model, None, self._clock.utc_ns())
        return None if price is None else {**_dollars(price), "version": price.version}

    async def version(self, version: str, access: Access = OPERATOR) -> PriceRow:
        """Raises NotFound, also for what a key may not see."""
        if (found := await self._find(version, access)) is None:
            raise NotFound(f"There is no price {version[:200]!r}.", param="version")
        return self._row(found, access)

    async def _find(self, version: str, access: Access) -> PriceVersion | None:
        found = await asyncio.to_thread(self._book.find, version)
        return found if found is not None and _may_see(access, found) else None

    async def _place(self, after: str, access: Access) -> int:
        if (found := await self._find(after, access)) is None:
            raise InvalidValue(
                f"'after' is {after[:80]!r}, which is no id of this list.", param="after"
            )
        return found.seq

    def _effective_ns(self, at_s: int | None) -> int | None:
        if at_s is None:
            return None
        if at_s > LAST_S:
            raise InvalidValue(
                f"'effective_at' is {at_s}, and {LAST_S} is the most it may be.",
                param="effective_at",
            )
        if at_s < self._clock.utc_ns() // 10**9:
            raise InvalidValue(
                "A price can't hold before now: what was charged stays as it is. Leave 'effective_at' out for now.",
                param="effective_at",
            )
        return at_s * 10**9

    def _check_leap(
        self, model: str, org: str | None, rates: Rates | None, from_ns: int | None
    ) -> None:
        prices, at_ns = self._book.list, from_ns or self._clock.utc_ns()
        before = prices.of(model, org, at_ns)
        after = prices.of(model, None, at_ns) if rates is None and org is not None else rates
        leaps = list(_leaps(before, after))
        if leaps:
            raise Conflict(
                f"This changes the price of {model!r} by more than {LEAP} times: {'; '.join(leaps)}."
                ' If that is meant, send it with "confirm": true (on the command line, --yes).'
            )

    def _known_model(self, name: str) -> str:
        if not is_model_name(name):
            raise InvalidValue(f"{name[:80]!r} can't be the name of a model.", param="model")
        return name if self._name_of is None else self._name_of(name)

    def _own_name(self, name: str) -> str:
        """As `_known_model`, but a name of no model is kept: prices outlive models."""
        try:
            return self._known_model(name)
        except (NotFound, InvalidValue):
            return name

    def _seen(self, org: str | None, access: Access) -> str | None:
        if org is None:
            return access.org
        if access.org not in (None, org):
            raise no_org(org)
        return self._directory.org(org).name

    def _row(self, version: PriceVersion, access: Access = OPERATOR) -> PriceRow:
        price, prices = version.price, self._book.list
        held = prices.in_force(version.model, version.org, self._clock.utc_ns())
        return PriceRow(
            version=version.version,
            model=version.model,
            org=version.org,
            **_dollars(price),
            withdrawn=price is None,
            origin=version.origin,
            note=version.note if access.is_operator else None,
            created_at=version.utc_ns // 10**9,
            effective_at=version.effective_from_ns // 10**9,
            in_force=price is not None and held is not None and held.version == version.version,
        )


def price_router(prices: PriceAdmin, guard: Guard) -> Router:
    """The routes: to set prices is the operator's."""

    @get("/", needs=Right.OWN_USAGE)
    async def list_prices(
        request: Visitor,
        model: FromQuery[str | None] = None,
        org: FromQuery[str | None] = None,
        in_force: FromQuery[bool] = False,
        limit: FromQuery[int] = PAGE_ROWS,
        after: FromQuery[str | None] = None,
    ) -> PricePage:
        """Versions of prices, oldest first; with `in_force` those that hold now."""
        return await prices.versions(
            request.user, model=model, org=org, in_force=in_force, limit=limit, after=after
        )

    @post("/")
    async def set_price(data: JSONBody[NewPrice]) -> PriceRow:
        """Set a price, for everybody or one organisation, from now or from a time to come."""
        return await prices.set(data)

    @get("/current", sync_to_thread=False, needs=Right.OWN_USAGE)
    def current_price(
        request: Visitor, model: FromQuery[str], org: FromQuery[str | None] = None
    ) -> PriceRow:
        """What an organisation pays for a model now."""
        return prices.current(model, request.user, org=org)

    # A model's name may hold slashes, and so may a version.
    @get("/versions/{version:path}", needs=Right.OWN_USAGE)
    async def read_price(request: Visitor, version: FromPath[str]) -> PriceRow:
        """One version of a price."""
        return await prices.version(version.strip("/"), request.user)

    return Router(
        "/admin/v1/prices",
        guards=[guard],
        tags=["admin"],
        route_handlers=[list_prices, set_price, current_price, read_price],
    )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which versions a list has."""

    model: str | None
    org: str | None
    with_list: bool
    """What everybody pays is shown, too."""

    def has(self, version: PriceVersion) -> bool:
        is_theirs = self.org in (None, version.org) or (self.with_list and version.org is None)
        return is_theirs and self.model in (None, version.model)


def _may_see(access: Access, version: PriceVersion) -> bool:
    """What plugins quote may be for one organisation alone, and nothing says for which."""
    if access.is_operator:
        return True
    return version.org == access.org or (version.org is None and not version.is_quote)


def rates_in(new: NewPrice) -> Rates | None:
    """None for a withdrawal. Raises InvalidValue."""
    if new.withdraw:
        if any(getattr(new, name) is not None for name in AMOUNTS):
            raise InvalidValue("A price that is withdrawn has no amounts.", param="withdraw")
        return None
    fresh, output = _nano(new.input, "input"), _nano(new.output, "output")
    if fresh is None or output is None:
        param = "input" if fresh is None else "output"
        raise InvalidValue(
            "A price says all that it is: 'input' and 'output', in dollars per million tokens, \"0\" where it is free.",
            param=param,
        )
    cached = _nano(new.cached_input, "cached_input")
    return Rates(
        input_nano=fresh,
        cached_input_nano=fresh if cached is None else cached,
        output_nano=output,
        reasoning_nano=_nano(new.reasoning, "reasoning"),
        embedding_nano=_nano(new.embedding, "embedding"),
        request_nano=_nano(new.request, "request") or 0,
    )


def _nano(text: str | None, param: str) -> int | None:
    if text is None:
        return None
    try:
        nano = dollars_to_nano(text)
    except ValueError:
        nano = -1
    if not 0 <= nano <= MOST_NANO:
        raise InvalidValue(
            f"{param!r} is {text[:40]!r}; it is dollars such as '0.10', up to {MOST_NANO // NANO} and with at most"
            " nine decimal places.",
            param=param,
        )
    return nano


def _leaps(before: Price | None, after: Rates | None) -> Iterator[str]:
    """Each dimension whose price changes by more than `LEAP` times. One that was free has nothing to compare with."""
    if before is None:
        return
    if after is None:
        yield "it would have none"
        return
    for name in AMOUNTS:
        old, new = _amount(before, name), _amount(after, name)
        is_said = any(getattr(rates, f"{name}_nano") is not None for rates in (before, after))
        if is_said and old and (new > LEAP * old or old > LEAP * new):
            yield f"{name} from {nano_to_dollars(old)} to {nano_to_dollars(new)}"


def _amount(rates: Rates, name: str) -> int:
    """Where nothing is said, what is paid instead."""
    nano: int | None = getattr(rates, f"{name}_nano")
    if nano is not None:
        return nano
    return rates.output_nano if name == "reasoning" else rates.input_nano


def _dollars(price: Price | None) -> dict[str, str | None]:
    """Each amount; null where there is none."""
    nanos = {name: None if price is None else getattr(price, f"{name}_nano") for name in AMOUNTS}
    return {name: None if nano is None else nano_to_dollars(nano) for name, nano in nanos.items()}
