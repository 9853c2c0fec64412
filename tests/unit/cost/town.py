"""Ledgers of many tenants to test reports on: made at random, and read back the simple way."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import strategies as st

from llmhost.core.ids import new_request_id
from llmhost.cost import ledger as money
from llmhost.cost import rows as true_cost
from llmhost.cost.breakdown import Breakdown
from llmhost.cost.ledger import Entry, Ledger
from llmhost.cost.reports import Reports
from llmhost.storage.reader import Reader
from llmhost.storage.writer import Writer
from llmhost.testing import at

NODE = "node-1"
START_NS = at("2026-10-20T00:00Z").utc_ns()
DAYS_NS = 20 * 86_400 * 10**9
"""Long enough for a month's end and an hour that comes twice in Europe."""
ORGS = ("acme", "beta")
TEAMS = (None, "red", "blue")
MODELS = ("tiny@1", "tiny@2", "big@1")

TOKENS = st.integers(0, 5_000)
NANO = st.integers(0, 10**7)


@dataclass(frozen=True)
class Town:
    """A ledger with what reads it."""

    writer: Writer
    ledger: Ledger
    reports: Reports
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
        writer = Writer(path, migrations=[money.SCHEMA, true_cost.SCHEMA], synchronous="NORMAL")
        reader = Reader(path)
        ledger = Ledger(writer, reader, node_id=NODE, clock=at("2026-10-20T00:00Z"))
        try:
            yield Town(writer, ledger, Reports(reader))
        finally:
            reader.close()
            writer.close()


@st.composite
def entries(draw: st.DrawFn) -> list[Entry]:
    """Up to fifteen requests and corrections of some days, in any order of time, with names of their own."""
    return [draw(entry()) for _ in range(draw(st.integers(0, 15)))]


@st.composite
def entry(draw: st.DrawFn) -> Entry:
    org = draw(st.sampled_from(ORGS))
    kind = draw(st.sampled_from(("request", "request", "request", "rerate")))
    is_request = kind == "request"
    costs = Breakdown(gpu_compute_nano=draw(NANO), infrastructure_nano=draw(NANO))
    return Entry(
        request_id=new_request_id(),
        kind=kind,
        utc_ns=START_NS + draw(st.integers(0, DAYS_NS)),
        key_id=draw(st.sampled_from((None, f"key-1-{org}", f"key-2-{org}"))),
        org=org,
        team=draw(st.sampled_from(TEAMS)),
        model=draw(st.sampled_from(MODELS)),
        outcome=draw(st.sampled_from(("answered", "cancelled", "failed"))),
        fresh_input_tokens=draw(TOKENS) if is_request else 0,
        cached_input_tokens=draw(TOKENS) if is_request else 0,
        output_tokens=draw(TOKENS) if is_request else 0,
        engine_ns=draw(NANO),
        amount_nano=draw(NANO) if is_request else draw(st.integers(-(10**7), 10**7)),
        costs=costs if is_request else None,
    )
