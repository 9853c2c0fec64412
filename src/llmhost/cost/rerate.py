"""Rating a period again: an entry of its own for each one whose amount would have been another. Nothing is edited.

What is taken back or charged in addition stands at the time of the use, under kind `rerate:ID`, and so in the sums and
budgets of that time. It starts from what a request has been charged altogether, so rating again at the same price does
nothing, and rating back at the old price restores what was.

Not everybody pays the price that was wrong. Lines of batches and kept answers go on paying their part of it; who had a
price of its own, and whom a plugin quoted one, is rated again only where that is asked for.
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from msgspec.structs import replace

from llmhost.core.output import Outcome
from llmhost.cost.entries import COLUMNS, DIMENSIONS, Entry, entry_of
from llmhost.cost.ledger import append
from llmhost.cost.prices import SHARES, PriceVersion, versions_named
from llmhost.cost.pricing import Price, Rates, rated_nano
from llmhost.cost.shares import Share
from llmhost.storage.connect import Connection
from llmhost.storage.reader import Reader
from llmhost.storage.writer import Job, Writer

KIND = "rerate:"
PAGE_ROWS = 500
"""Entries in one commit: requests that run have theirs in between."""

_IS_PAID = f"""kind = 'request' AND (outcome IN ('{Outcome.ANSWERED}', '{Outcome.CANCELLED}')
            OR amount_nano <> 0)"""
_PAGE = f"""
    SELECT utc_ns, seq FROM entries
    WHERE (utc_ns, seq) > (:at, :seq) AND utc_ns < :until AND {_IS_PAID} AND (:org IS NULL OR org = :org)
        AND (model = :model OR substr(model, 1, length(:model) + 1) = :model || '@')
        AND (:was IS NULL OR price_version = :was)
    ORDER BY utc_ns, seq LIMIT {PAGE_ROWS}
"""
_OF = "(SELECT value FROM json_each(?))"
_ENTRIES = f"SELECT {', '.join(COLUMNS)} FROM entries WHERE seq IN {_OF} ORDER BY seq"
_RERATED = f"""
    SELECT request_id, kind, amount_nano FROM entries
    WHERE request_id IN {_OF} AND substr(kind, 1, {len(KIND)}) = '{KIND}'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerating:
    """What to rate again, of since <= time < until, and how. `rerate_id` names it: once applied it is done for good."""

    rerate_id: str
    model: str
    """A model of all versions, or one `name@version`."""
    since_ns: int
    until_ns: int
    org: str | None = None
    """Its requests alone, at whatever price of its own they were."""
    was: str | None = None
    """Those alone that were charged by this version, whosever it was."""
    price: Price


@dataclass(slots=True)
class Outcomes:
    """What came of it for one organisation."""

    org: str
    requests: int = 0
    """That were looked at."""
    changed: int = 0
    before_nano: int = 0
    after_nano: int = 0

    @property
    def difference_nano(self) -> int:
        return self.after_nano - self.before_nano


@dataclass(frozen=True, slots=True)
class _Page:
    """Of some requests: what each was charged so far, and the entries that make up the difference."""

    charged: Sequence[tuple[str, int, int]] = ()
    """(organisation, nano-dollars before, after)."""
    entries: Sequence[Entry] = field(default_factory=list)


def rated(entry: Entry, price: Rates) -> int:
    """What an entry's quantities cost at a price, in nano-dollars; nothing where no token was used."""
    tokens = {name: getattr(entry, f"{name}_tokens") for name in DIMENSIONS}
    return rated_nano(price, **tokens) if any(tokens.values()) else 0


def rates_for(entry: Entry, wanted: Rerating, known: Mapping[str, PriceVersion]) -> Rates | None:
    """What an entry is rated at again; None where it stays what it was. `known` are versions by their names."""
    if wanted.was is not None:
        return wanted.price
    shares: list[Share] = []
    version = known.get(entry.price_version or "")
    while version is not None and (share := version.share) is not None:
        shares.append(share)
        version = known.get(share.version)
    if version is not None:
        is_own = version.org is not None and wanted.org is None
        if is_own or version.is_of_plugin or version.origin in SHARES:
            return None
    rates: Rates = wanted.price
    for share in reversed(shares):
        rates = share.rates(rates)
    return rates


def differences(connection: Connection, seqs: Sequence[int], wanted: Rerating) -> _Page:
    """What rating these entries again would change. Those that this rerating has changed already are left out."""
    rows = connection.execute(_ENTRIES, (json.dumps(seqs),)).fetchall()
    entries = [entry_of(dict(zip(COLUMNS[2:], row[2:], strict=True))) for row in rows]
    ids = json.dumps([entry.request_id for entry in entries])
    kind = f"{KIND}{wanted.rerate_id}"
    charged = {entry.request_id: entry.amount_nano for entry in entries}
    done = set()
    for request_id, this_kind, nano in connection.execute(_RERATED, (ids,)):
        charged[request_id] += nano
        if this_kind == kind:
            done.add(request_id)
    known = versions_named(connection, {e.price_version for e in entries if e.price_version})
    said, made = [], []
    for entry in entries:
        before = after = charged[entry.request_id]
        rates = None if entry.request_id in done else rates_for(entry, wanted, known)
        if rates is not None:
            after = rated(entry, rates)
        said.append((entry.org, before, after))
        if after != before:
            made.append(_compensation(entry, kind, after - before, wanted.price.version))
    return _Page(said, made)


def _compensation(entry: Entry, kind: str, nano: int, version: str) -> Entry:
    nothing: dict[str, Any] = {f"{name}_tokens": 0 for name in DIMENSIONS}
    nothing |= {"engine_ns": 0, "load_ns": 0, "safety_units": 0}
    return replace(entry, **nothing, kind=kind, price_version=version, amount_nano=nano)


class Rerater:
    """Rates periods of the ledger again. `on_applied` hears of each entry that it made, once that is on disk."""

    def __init__(
        self,
        writer: Writer,
        reader: Reader,
        *,
        node_id: str,
        on_applied: Callable[[Entry], None] = lambda _: None,
        turn: asyncio.Lock | None = None,
    ) -> None:
        """Whoever holds `turn` has either heard of an entry or not found it in the ledger."""
        self._writer = writer
        self._reader = reader
        self._node_id = node_id
        self._on_applied = on_applied
        self._turn = turn or asyncio.Lock()

    async def try_out(self, wanted: Rerating) -> list[Outcomes]:
        """What `apply` would change, by organisation; changes nothing."""
        return await self._go(wanted, is_applied=False)

    async def apply(self, wanted: Rerating) -> list[Outcomes]:
        """Make the entries, some hundred at a time. Cut short, it can be begun again with the same id."""
        return await self._go(wanted, is_applied=True)

    async def _go(self, wanted: Rerating, *, is_applied: bool) -> list[Outcomes]:
        found: dict[str, Outcomes] = {}
        at = wanted.since_ns, -1
        while True:
            page = await self._reader.read(partial(_page, wanted=wanted, at=at))
            if not page:
                return sorted(found.values(), key=lambda each: each.org)
            at = page[-1]
            job = partial(differences, seqs=[seq for _, seq in page], wanted=wanted)
            if is_applied:
                async with self._turn:
                    result = await self._writer.run(partial(self._carry_out, job))
                    for entry in result.entries:
                        self._on_applied(entry)
            else:
                result = await self._reader.read(job)
            _count(found, result.charged)

    def _carry_out(self, job: Job[_Page], connection: Connection) -> _Page:
        page = job(connection)
        append(connection, page.entries, node_id=self._node_id)
        return page


def _page(
    connection: Connection, *, wanted: Rerating, at: tuple[int, int]
) -> list[tuple[int, int]]:
    bounds = {"at": at[0], "seq": at[1], "until": wanted.until_ns}
    names = {"org": wanted.org, "model": wanted.model, "was": wanted.was}
    return connection.execute(_PAGE, {**bounds, **names}).fetchall()


def _count(found: dict[str, Outcomes], charged: Iterable[tuple[str, int, int]]) -> None:
    for org, before, after in charged:
        told = found.setdefault(org, Outcomes(org))
        told.requests += 1
        told.changed += before != after
        told.before_nano += before
        told.after_nano += after
