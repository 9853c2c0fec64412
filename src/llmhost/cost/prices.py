"""Which price holds for whom and when. Versions are appended and never changed: an undo is another version.

A price comes from models.toml (`file`), from an operator (`api`), or from a plugin for single requests (`plugin:NAME`);
`batch` is what lines of batches pay of another, and `cache` what kept answers cost of one.
The list is in memory, for the event loop; what changes it is on disk before.
"""

import json
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from llmhost.config.schema.money import PriceSettings
from llmhost.core.ports import Clock
from llmhost.core.world import World
from llmhost.cost.pricing import Price, Rates, rates_of
from llmhost.cost.shares import Share, share_in
from llmhost.storage.connect import Connection
from llmhost.storage.reader import Reader
from llmhost.storage.schema import Schema
from llmhost.storage.writer import Writer

SCHEMA = Schema(
    "prices",
    {
        "origins_and_organisations": (
            "ALTER TABLE prices ADD COLUMN org TEXT",  # null: everybody's
            "ALTER TABLE prices ADD COLUMN origin TEXT NOT NULL DEFAULT 'file'",
            "ALTER TABLE prices ADD COLUMN note TEXT",
            "ALTER TABLE prices ADD COLUMN reasoning_nano INTEGER CHECK (reasoning_nano >= 0)",
            "ALTER TABLE prices ADD COLUMN embedding_nano INTEGER CHECK (embedding_nano >= 0)",
            "ALTER TABLE prices ADD COLUMN request_nano INTEGER NOT NULL DEFAULT 0 CHECK (request_nano >= 0)",
            "ALTER TABLE prices ADD COLUMN is_withdrawn INTEGER NOT NULL DEFAULT 0",
        ),
    },
)
"""Columns of the table that the ledger's schema makes: apply it after that."""

FILE, API, BATCH, CACHE = "file", "api", "batch", "cache"
SHARES = (BATCH, CACHE)
"""Origins of prices that are parts of others."""
_PLUGIN = "plugin:"
_RATES = tuple(field.name for field in fields(Rates))
_COLUMNS = (
    *("seq", "version", "model", "org", "origin", "note"),
    *("utc_ns", "effective_from_ns", "is_withdrawn", *_RATES),
)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM prices"
_IS_QUOTE = "instr(model, '+')"  # no model has one in its name
_LISTED = f"{_SELECT} WHERE NOT {_IS_QUOTE} ORDER BY seq"
_SAME = " AND ".join(f"{name} IS ?" for name in _RATES)
_NAMED = f"{_SELECT} WHERE version IN (SELECT value FROM json_each(?))"
_OF_FILE = f"{_SELECT} WHERE model = ? AND origin = '{FILE}' ORDER BY seq DESC LIMIT 1"
_PAGE = f"""
    {_SELECT} WHERE seq > :after
        AND (:model IS NULL OR model = :model OR substr(model, 1, length(:model) + 1) = :model || '+')
        AND (:org IS NULL OR org = :org OR (:with_list AND org IS NULL AND NOT {_IS_QUOTE}))
    ORDER BY seq LIMIT :limit
"""
_NOTHING = Rates(input_nano=0, cached_input_nano=0, output_nano=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceVersion:
    """One price that somebody set, and from when on it holds. Times are UTC nanoseconds."""

    seq: int
    version: str
    model: str
    org: str | None
    """Whom it is for; None: whoever has none of its own."""
    origin: str
    """`file`, `api`, `batch`, `cache` or `plugin:NAME`."""
    note: str | None
    utc_ns: int
    """When it was set."""
    effective_from_ns: int
    price: Price | None
    """None ends what held before: an organisation pays the list price again, or the model has none."""

    @property
    def is_quote(self) -> bool:
        return "+" in self.version

    @property
    def is_of_plugin(self) -> bool:
        return self.origin.startswith(_PLUGIN)

    @property
    def share(self) -> Share | None:
        """Which part of another price it is; None where it is none, or was made before that was written down."""
        return share_in(self.note) if self.origin in SHARES else None

    @property
    def order(self) -> tuple[int, int]:
        """Of two in force the greater one holds."""
        return self.effective_from_ns, self.seq


class PriceList:
    """All prices but those of plugins, in memory. Of one thread."""

    def __init__(self, versions: Iterable[PriceVersion] = ()) -> None:
        self._versions: dict[tuple[str, str | None], list[PriceVersion]] = {}
        for version in versions:
            self.add(version)

    def add(self, version: PriceVersion) -> None:
        known = self._versions.setdefault((version.model, version.org), [])
        insort(known, version, key=lambda each: each.order)

    def of(self, model_name: str, org: str | None, utc_ns: int) -> Price | None:
        """What an organisation pays at that time: its own price, else everybody's. None where there is no price."""
        if org is not None:
            own = self.in_force(model_name, org, utc_ns)
            if own is not None and own.price is not None:
                return own.price
        listed = self.in_force(model_name, None, utc_ns)
        return None if listed is None else listed.price

    def in_force(self, model_name: str, org: str | None, utc_ns: int) -> PriceVersion | None:
        """The newest version of exactly this model and organisation that holds at that time."""
        for version in reversed(self._versions.get((model_name, org), ())):
            if version.effective_from_ns <= utc_ns:
                return version
        return None

    def next_ns(self, model_name: str, org: str | None, utc_ns: int) -> int | None:
        """When another price begins to hold that is set already; None where none is."""
        versions = [*self._versions.get((model_name, None), ())]
        if org is not None:
            versions += self._versions.get((model_name, org), ())
        coming = (each.effective_from_ns for each in versions if each.effective_from_ns > utc_ns)
        return min(coming, default=None)

    def all_in_force(self, utc_ns: int) -> Iterator[PriceVersion]:
        """Of each model and organisation, in the order in which they were set."""
        found = (self.in_force(*key, utc_ns) for key in self._versions)
        held = [version for version in found if version is not None and version.price is not None]
        return iter(sorted(held, key=lambda version: version.seq))


class PriceBook:
    """Owns the prices: `list` in memory, and their rows. Loads them when made, which waits for the disk.

    Changes are made from one event loop, and are committed before the list has them.
    """

    def __init__(
        self,
        writer: Writer,
        reader: Reader,
        *,
        node_id: str,
        clock: Clock,
        world: World | None = None,
    ) -> None:
        """`world` is told of every change."""
        self._world = world or World()
        self._writer = writer
        self._reader = reader
        self._node_id = node_id
        self._clock = clock
        self.list = PriceList(reader.read_now(_load))

    def _add(self, version: PriceVersion) -> None:
        self.list.add(version)
        self._world.changed()

    async def declare(self, settings: Mapping[str, PriceSettings | None]) -> None:
        """Take the prices of models.toml: one that differs from the file's last is a new version, in force from now.

        So a later price of an operator stands until the file says something new. Raises ConfigError for a price that
        can't be read.
        """
        wanted = {
            model: None if price is None else rates_of(price, model=model)
            for model, price in settings.items()
        }

        now_ns = self._clock.utc_ns()

        def declare(connection: Connection) -> list[PriceVersion]:
            changed = [
                (model, rates)
                for model, rates in wanted.items()
                if _is_news(connection.execute(_OF_FILE, (model,)).fetchone(), rates, now_ns)
            ]
            return [self._insert(connection, *each, origin=FILE) for each in changed]

        for version in await self._writer.run(declare):
            self._add(version)

    async def set(
        self,
        model: str,
        rates: Rates | None,
        *,
        org: str | None = None,
        effective_from_ns: int | None = None,
        note: str | None = None,
    ) -> PriceVersion:
        """A new version, in force from now or from a time to come. Without rates it ends what held before."""
        version = await self._writer.run(
            lambda connection: self._insert(
                connection,
                model,
                rates,
                origin=API,
                org=org,
                effective_from_ns=effective_from_ns,
                note=note,
            )
        )
        self._add(version)
        return version

    async def quote(self, model: str, plugin: str, rates: Rates) -> Price:
        """A price that a plugin made for a model, under a version of its own: the first that says the same."""
        return await self._find_or_add(f"{model}+{plugin}", rates, f"{_PLUGIN}{plugin}")

    async def for_batches(self, model: str, whole: Rates, share: Share) -> Price:
        """The same for what lines of batches pay of a model's price."""
        return await self._share_of(f"{model}+{BATCH}", whole, share, BATCH)

    async def for_hits(self, model: str, whole: Rates, share: Share) -> Price:
        """The same for what kept answers cost of a model's price."""
        return await self._share_of(f"{model}+{CACHE}", whole, share, CACHE)

    async def for_rerating(self, model: str, rates: Rates) -> Price:
        """The same for a period that is rated again: it holds for no new request."""
        return await self._find_or_add(f"{model}+rerate", rates, API)

    async def _share_of(self, name: str, whole: Rates, share: Share, origin: str) -> Price:
        return await self._find_or_add(name, share.rates(whole), origin, share.note)

    async def _find_or_add(
        self, name: str, rates: Rates, origin: str, note: str | None = None
    ) -> Price:

        def find_or_add(connection: Connection) -> PriceVersion:
            query = f"{_SELECT} WHERE model = ? AND note IS ? AND {_SAME} ORDER BY seq LIMIT 1"
            row = connection.execute(query, (name, note, *_values(rates))).fetchone()
            if row is not None:
                return _version(row)
            return self._insert(connection, name, rates, origin=origin, note=note)

        price = (await self._writer.run(find_or_add)).price
        assert price is not None, "a quote has rates"
        return price

    def copy(self) -> PriceList:
        """The list as it is on disk, for another thread. Waits for it."""
        return PriceList(self._reader.read_now(_load))

    def find(self, version: str) -> PriceVersion | None:
        """A version by its name, those of plugins too. Waits for the disk."""
        query = f"{_SELECT} WHERE version = ?"
        row = self._reader.read_now(lambda c: c.execute(query, (version,)).fetchone())
        return None if row is None else _version(row)

    def page(
        self,
        *,
        model: str | None = None,
        org: str | None = None,
        with_list: bool = False,
        after: int = 0,
        limit: int,
    ) -> list[PriceVersion]:
        """Versions behind the one whose `seq` is `after`, oldest first. Waits for the disk.

        With `org` only its own ones; `with_list` adds those of everybody. Of a `model` its quotes are shown, too.
        """
        bounds = {"after": after, "model": model, "org": org, "with_list": with_list}
        rows = self._reader.read_now(
            lambda c: c.execute(_PAGE, {**bounds, "limit": limit}).fetchall()
        )
        return [_version(row) for row in rows]

    def _insert(
        self,
        connection: Connection,
        model: str,
        rates: Rates | None,
        *,
        origin: str,
        org: str | None = None,
        effective_from_ns: int | None = None,
        note: str | None = None,
    ) -> PriceVersion:
        now_ns = self._clock.utc_ns()
        count = connection.execute("SELECT count(*) FROM prices WHERE model = ?", (model,))
        facts = {
            "version": f"{model}/{count.fetchone()[0] + 1}",
            "model": model,
            "org": org,
            "origin": origin,
            "note": note,
            "utc_ns": now_ns,
            "effective_from_ns": max(now_ns, effective_from_ns or 0),
            "is_withdrawn": rates is None,
            **dict(zip(_RATES, _values(rates or _NOTHING), strict=True)),
        }
        names, marks = ", ".join(facts), ", ".join("?" * len(facts))
        row = connection.execute(
            f"INSERT INTO prices (node_id, {names}) VALUES (?, {marks}) RETURNING seq",
            (self._node_id, *facts.values()),
        ).fetchone()
        return _version((row[0], *facts.values()))


def versions_named(connection: Connection, names: Iterable[str]) -> dict[str, PriceVersion]:
    """Versions by their names, with those that they are parts of; what nobody has set is missing."""
    found: dict[str, PriceVersion] = {}
    asked: set[str] = set()
    while new := set(names) - asked:
        asked |= new
        rows = connection.execute(_NAMED, (json.dumps(sorted(new)),))
        found |= {version.version: version for version in map(_version, rows)}
        shares = (found[name].share for name in new if name in found)
        names = [share.version for share in shares if share is not None]
    return found


def _load(connection: Connection) -> list[PriceVersion]:
    return [_version(row) for row in connection.execute(_LISTED)]


def _version(row: Sequence[Any]) -> PriceVersion:
    facts = dict(zip(_COLUMNS, row, strict=True))
    is_withdrawn = facts.pop("is_withdrawn")
    rates = {name: facts.pop(name) for name in _RATES}
    facts["model"] = facts["model"].partition("+")[0]  # a quote is kept beside its model's prices
    price = None if is_withdrawn else Price(version=facts["version"], **rates)
    return PriceVersion(price=price, **facts)


def _is_news(row: Sequence[Any] | None, rates: Rates | None, now_ns: int) -> bool:
    """Whether the file says something else than its newest version, if it has one."""
    known = None if row is None else _version(row)
    if known is None or known.price is None:
        return rates is not None
    # A clock that was ahead has left a version that doesn't hold yet: until it did, requests would be free.
    return (
        rates is None or known.effective_from_ns > now_ns or _values(known.price) != _values(rates)
    )


def _values(rates: Rates) -> tuple[int | None, ...]:
    return tuple(getattr(rates, name) for name in _RATES)
