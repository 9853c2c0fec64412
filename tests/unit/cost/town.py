"""Ledgers of many tenants to test reports on: made at random, and read back the simple way."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import strategies as st
from msgspec import structs

from llmhost.core.ids import new_request_id
from llmhost.cost import ledger as money
from llmhost.cost import prices
from llmhost.cost import rows as true_cost
from llmhost.cost.breakdown import Breakdown
from llmhost.cost.entries import DIMENSIONS, Entry, account_of
from llmhost.cost.ledger import Ledger
from llmhost.cost.prices import PriceBook
from llmhost.cost.pricing import Price, rated_nano
from llmhost.cost.reports import Reports
from llmhost.cost.statement import Statements
from llmhost.storage.connect import Connection
from llmhost.storage.reader import Reader
from llmhost.storage.writer import Writer
from llmhost.testing import ManualClock, at

NODE = "node-1"
SECRET = b"a secret of thirty-two bytes, ok."[:32]
START_NS = at("2026-10-20T00:00Z").utc_ns()
DAYS_NS = 20 * 86_400 * 10**9
"""Long enough for a month's end and an hour that comes twice in Europe."""
ORGS = ("acme", "beta")
TEAMS = (None, "red", "blue")
MODELS = ("tiny@1", "tiny@2", "big@1", "free@1")
KINDS = (*["request"] * 6, "rerate", "payment")
PRICES = {
    "tiny@1": Price(version="tiny/1", input_nano=3, cached_input_nano=1, output_nano=7),
    "tiny@2": Price(
        version="tiny/2",
        input_nano=100_000_001,
        cached_input_nano=10_000_000,
        output_nano=400_000_003,
        reasoning_nano=500_000_000,
        embedding_nano=20_000_001,
        request_nano=1_000,
    ),
    "big@1": Price(version="big/1", input_nano=0, cached_input_nano=0, output_nano=10**10),
}

TOKENS = st.one_of(st.just(0), st.integers(0, 5_000))
NANO = st.integers(0, 10**7)


class Clock(ManualClock):
    """Stands where it was set."""

    def set(self, text: str) -> None:
        self._utc_ns = at(text).utc_ns()


@dataclass(frozen=True)
class Town:
    """A ledger with what reads it."""

    writer: Writer
    ledger: Ledger
    reports: Reports
    statements: Statements
    clock: Clock
    costs: dict[str, int] = field(default_factory=dict)
    """What each request has cost."""

    def record(self, *entries: Entry) -> None:
        self.costs.update({one.request_id: one.costs.total_nano for one in entries if one.costs})
        for done in [self.ledger.record(entry) for entry in entries]:
            done.result(10)

    def rows(self) -> list[dict[str, Any]]:
        return list(self.ledger.export())


@contextmanager
def new_town() -> Iterator[Town]:
    with TemporaryDirectory() as made:
        path = Path(made) / "money.db"
        schemas = [money.SCHEMA, prices.SCHEMA, true_cost.SCHEMA]
        writer = Writer(path, migrations=schemas, synchronous="NORMAL")
        writer.submit(_set_prices).result(10)
        reader, clock = Reader(path), Clock(at("2026-10-20T00:00Z").utc_now())
        facts: dict[str, Any] = {"node_id": NODE, "clock": clock}
        book, reports = PriceBook(writer, reader, **facts), Reports(reader)
        try:
            yield Town(
                writer,
                Ledger(writer, reader, **facts),
                reports,
                Statements(reports, book, secret=SECRET, **facts),
                clock,
            )
        finally:
            reader.close()
            writer.close()


def _set_prices(connection: Connection) -> None:
    for price in PRICES.values():
        facts = asdict(price) | {"node_id": NODE, "model": price.version.partition("/")[0]}
        facts |= {"utc_ns": START_NS, "effective_from_ns": START_NS}
        names, marks = ", ".join(facts), ", ".join("?" * len(facts))
        connection.execute(f"INSERT INTO prices ({names}) VALUES ({marks})", tuple(facts.values()))


@st.composite
def entries(draw: st.DrawFn) -> list[Entry]:
    """Up to fifteen requests and corrections of some days, in any order of time, with names of their own."""
    return [draw(entry()) for _ in range(draw(st.integers(0, 15)))]


@st.composite
def entry(draw: st.DrawFn) -> Entry:
    """A request, now and then a correction, and seldom a payment."""
    org, kind = draw(st.sampled_from(ORGS)), draw(st.sampled_from(KINDS))
    utc_ns = START_NS + draw(st.integers(0, DAYS_NS))
    if kind == "payment":
        accounts: dict[str, Any] = {"debit": "cash", "credit": account_of(org)}
        name, amount = new_request_id(), draw(NANO)
        return Entry.transfer(
            name, kind=kind, utc_ns=utc_ns, org=org, amount_nano=amount, **accounts
        )
    made = Entry(
        request_id=new_request_id(),
        kind=kind,
        utc_ns=utc_ns,
        key_id=draw(st.sampled_from((None, f"key-1-{org}", f"key-2-{org}"))),
        org=org,
        team=draw(st.sampled_from(TEAMS)),
        model=draw(st.sampled_from(MODELS)),
        outcome=draw(st.sampled_from(("answered", "cancelled", "failed", "refused"))),
        run_id=draw(st.sampled_from((None, "run-1"))),
        adapter=draw(st.sampled_from((None, None, "pirate"))),
        from_cache=draw(st.sampled_from((None, None, "hit", "joined"))),
        engine_ns=draw(NANO),
    )
    if kind != "request":
        return structs.replace(made, amount_nano=draw(st.integers(-(10**7), 10**7)))
    costs = Breakdown(gpu_compute_nano=draw(NANO), infrastructure_nano=draw(NANO))
    return rated(
        structs.replace(
            made, costs=costs, **{f"{name}_tokens": draw(TOKENS) for name in DIMENSIONS}
        )
    )


def rated(made: Entry) -> Entry:
    """With the price of its model, if that has one, and the charge that follows from it."""
    price = PRICES.get(made.model)
    if price is None:
        return made
    tokens = {name: getattr(made, f"{name}_tokens") for name in DIMENSIONS}
    is_paid = made.outcome in ("answered", "cancelled") or made.engine_ns % 2 == 1  # as configured
    amount = rated_nano(price, **tokens) if is_paid and any(tokens.values()) else 0
    return structs.replace(made, price_version=price.version, amount_nano=amount)
