"""An organisation's statement of a month: its lines, what they were made of, and a signature over all of it.

The statement names every entry that it adds up by number and hash, as one digest. Each of those hashes covers all
entries before it, other tenants' included, so that nothing of the past can be changed without changing them; of other
tenants nothing is shown. docs/billing.md says what that proves and what it does not.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from llmhost.core.errors import InvalidValue, NotFound
from llmhost.core.ports import Clock
from llmhost.core.units import nano_to_dollars
from llmhost.cost import periods
from llmhost.cost.ed25519 import public_key, sign
from llmhost.cost.entries import DIMENSIONS
from llmhost.cost.lines import (
    CORRECTION,
    CREDIT,
    FREE,
    USE,
    BillLine,
    Charge,
    femto_to_dollars,
    lines_of,
    price_units,
    total_femto,
)
from llmhost.cost.periods import Span
from llmhost.cost.prices import PriceBook, PriceVersion
from llmhost.cost.pricing import Rates
from llmhost.cost.query import WITHIN, Bounds, Query
from llmhost.cost.reports import Reports
from llmhost.storage.connect import Connection

FORM = "llmhost.statement/1"
GROUPS = ("team", "key", "model")
RULE = (
    "An entry's amount is the sum of its quantities times their prices, rounded once to a whole nano-dollar, half to"
    " the even side. Entries that were answered or cancelled are charged, and of those that failed or were refused"
    " the ones with an amount."
)
ALGORITHM = "Ed25519"
_ROWS = f"""
    SELECT utc_ns, seq, hash FROM entries
    WHERE {WITHIN} AND (utc_ns > :since OR seq > :after) ORDER BY utc_ns, seq LIMIT 1000
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The entries of a statement, in order of time and then of number: how many, from where to where, and a digest."""

    count: int
    first: tuple[int, str] | None
    last: tuple[int, str] | None
    """By number: (number, hash)."""
    digest: str


class Digest:
    """SHA-256 over each entry's number (8 bytes, the greatest first) and hash, one after the other."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._count = 0
        self._first: tuple[int, bytes] | None = None
        self._last: tuple[int, bytes] | None = None

    def add(self, rows: Sequence[tuple[int, bytes]]) -> None:
        """Entries in order of time and then of number."""
        self._hash.update(b"".join(seq.to_bytes(8) + row_hash for seq, row_hash in rows))
        self._count += len(rows)
        if rows:
            low, high = min(rows), max(rows)
            self._first = low if self._first is None else min(self._first, low)
            self._last = high if self._last is None else max(self._last, high)

    def done(self) -> Places:
        first, last = self._first, self._last
        return Places(
            count=self._count,
            first=None if first is None else (first[0], first[1].hex()),
            last=None if last is None else (last[0], last[1].hex()),
            digest=self._hash.hexdigest(),
        )


class Statements:
    """Makes and signs statements. Blocks: off the event loop, call it in a thread."""

    def __init__(
        self,
        reports: Reports,
        prices: PriceBook,
        *,
        secret: bytes,
        node_id: str,
        clock: Clock,
    ) -> None:
        self._reports = reports
        self._prices = prices
        self._secret = secret
        self._node_id = node_id
        self._clock = clock

    @cached_property
    def key(self) -> dict[str, str]:
        """What customers check signatures with."""
        return {
            "algorithm": ALGORITHM,
            "public_key": public_key(self._secret).hex(),
            "node_id": self._node_id,
        }

    def make(self, org: str, month: str, timezone: str = "UTC") -> dict[str, Any]:
        """The signed statement, as JSON has it. Raises InvalidValue for a month that has not begun."""
        now_ns = self._clock.utc_ns()
        span = periods.month_of(month, periods.zone_of(timezone))
        if span.start_ns > now_ns:
            raise InvalidValue(f"The month {month} has not begun.", param="month")
        head = self._reports.head()
        query = Query(
            by=GROUPS,
            zone=timezone,
            since_ns=span.start_ns,
            until_ns=span.end_ns,
            within_org=org,
            last=head.seq,
        )
        charges = self._reports.charges(query)
        rates = self.rates_of(charges)
        lines = lines_in_order(charges, rates)
        places = self._places(query)
        said = {
            "form": FORM,
            "organisation": org,
            "month": month,
            "timezone": timezone,
            "period": period(span),
            "node_id": self._node_id,
            "issued_at": periods.iso(now_ns),
            "is_complete": now_ns >= span.end_ns,
            "currency": "USD",
            "rule": RULE,
            "prices": [price_row(version, rates[version]) for version in sorted(rates)],
            "lines": [line_row(line) for line in lines],
            "totals": totals(charges, lines),
            "entries": places_row(places),
            "head": {"seq": head.seq, "hash": head.hash},
        }
        signature = sign(self._secret, signed_text(said)).hex()
        key = {"algorithm": ALGORITHM, "public_key": self.key["public_key"]}
        return {"statement": said, "signature": {**key, "value": signature}}

    def list_rates(self) -> Callable[[str, int], Rates | None]:
        """What everybody paid for the model of a price's version at a time, if that was another price."""
        listed = self._prices.copy()
        found: dict[str, PriceVersion | None] = {}

        def rates(version: str, utc_ns: int) -> Rates | None:
            if version not in found:
                found[version] = self._prices.find(version)
            known = found[version]
            if known is None or (known.org is None and not known.is_quote):
                return None
            return listed.of(known.model, None, utc_ns)

        return rates

    def rates_of(self, charges: Iterable[Charge]) -> dict[str, Rates]:
        """The prices that charges were made with. Raises NotFound for one that nobody has set."""
        found: dict[str, Rates] = {}
        used = {charge.price for charge in charges if charge.sort == USE}
        for version in sorted(name for name in used if name is not None):
            price = self._prices.find(version)
            if price is None or price.price is None:
                raise NotFound(f"The ledger names the price {version!r}, which is not in money.db.")
            found[version] = price.price
        return found

    def _places(self, query: Query) -> Places:
        digest = Digest()
        for piece in self._reports.pieces("entries", query):
            bounds: dict[str, Any] = {**piece, "after": 0}
            while rows := self._reports.read(partial(_page, bounds=bounds)):
                digest.add([(seq, row_hash) for _, seq, row_hash in rows])
                bounds["since"], bounds["after"] = rows[-1][:2]
        return digest.done()


def _page(connection: Connection, *, bounds: Bounds) -> list[tuple[int, int, bytes]]:
    return connection.execute(_ROWS, bounds).fetchall()


def lines_in_order(charges: Iterable[Charge], rates: Mapping[str, Rates]) -> list[BillLine]:
    """By whose they are, then by price and dimension: the same for whoever adds them up."""
    order = {sort: place for place, sort in enumerate((USE, FREE, CORRECTION, CREDIT))}

    def key(charge: Charge) -> tuple[Any, ...]:
        names = tuple("" if one is None else str(one) for one in charge.key)
        return order[charge.sort], names, charge.kind, charge.price or ""

    found: list[BillLine] = []
    for charge in sorted(charges, key=key):
        is_rated = charge.sort == USE and charge.price is not None
        found += lines_of(charge, rates[str(charge.price)] if is_rated else None)
    return found


def period(span: Span) -> dict[str, Any]:
    return {
        "since": periods.iso(span.start_ns),
        "until": periods.iso(span.end_ns),
        "since_ns": span.start_ns,
        "until_ns": span.end_ns,
    }


def price_row(version: str, rates: Rates) -> dict[str, Any]:
    """Prices for a million tokens, and for a request, in nano-dollars."""
    return {"version": version, "nano": price_units(rates)}


def line_row(line: BillLine) -> dict[str, Any]:
    unit = line.unit_nano
    return {
        **dict(zip(GROUPS, line.key, strict=True)),
        "sort": line.sort,
        "kind": line.kind,
        "price": line.price,
        "dimension": line.dimension,
        "quantity": line.quantity,
        "unit_price_usd": None if unit is None else nano_to_dollars(unit),
        "per": line.per,
        "amount_usd": femto_to_dollars(line.amount_femto),
    }


def totals(charges: Sequence[Charge], lines: Sequence[BillLine]) -> dict[str, Any]:
    """Whole nano-dollars: lines together are the entries' amounts."""
    paid = [charge for charge in charges if charge.sort == USE]
    use, corrections, credits_ = (
        _nano(total_femto(lines, *sorts)) for sorts in ((USE, FREE), (CORRECTION,), (CREDIT,))
    )
    charged = use + corrections
    return {
        "requests": sum(charge.entries for charge in charges if charge.sort in (USE, FREE)),
        "tokens": {
            name: sum(charge.tokens[place] for charge in paid)
            for place, name in enumerate(DIMENSIONS)
        },
        "use_nano": use,
        "corrections_nano": corrections,
        "charged_nano": charged,
        "charged_usd": nano_to_dollars(charged),
        "credits_nano": credits_,
        "credits_usd": nano_to_dollars(credits_),
    }


def places_row(places: Places) -> dict[str, Any]:
    first, last = places.first, places.last
    return {
        "count": places.count,
        "first": None if first is None else {"seq": first[0], "hash": first[1]},
        "last": None if last is None else {"seq": last[0], "hash": last[1]},
        "digest": places.digest,
    }


def signed_text(said: Mapping[str, Any]) -> bytes:
    """The bytes that are signed: JSON with sorted keys, ASCII, no spaces."""
    return json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _nano(femto: int) -> int:
    nano, rest = divmod(femto, 10**6)
    assert not rest, "lines are whole entries, and these are whole nano-dollars"
    return nano
