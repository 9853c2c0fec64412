"""Busy, loading and idle tile a device's time, whatever overlaps; and what does not add up is noticed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from llmhost.config.schema.money import CostSettings
from llmhost.core.meter import HOUR_NS, Rate
from llmhost.core.ports import EngineLoad, LaneAccount, Turn
from llmhost.cost.attribution import LoadBegun, TrueCosts
from llmhost.cost.conservation import read_device
from llmhost.cost.rates import NodeRates, node_rates
from llmhost.gpu.lane import DeviceLane
from llmhost.testing import ManualClock, at

GPU = "cuda:0"
RATE = Rate(2_777_777_777, HOUR_NS)


@dataclass
class Box:
    """One GPU, on which turns are taken and models loaded."""

    clock: ManualClock = field(default_factory=lambda: at("2026-01-10T12:00Z"))

    def __post_init__(self) -> None:
        self.lane = DeviceLane(GPU, self.clock, RATE)
        self.costs = TrueCosts(NodeRates(gpu=RATE), self.clock, lanes=lambda: {GPU: self.lane})
        self.spent = EngineLoad()
        self.costs.engine_started(GPU, lambda: self.spent)
        self.turn: Turn | None = None
        self.loads: list[LoadBegun] = []

    def act(self, act: str, seconds: int) -> None:
        match act:
            case "wait":
                self.clock.advance(seconds)
            case "begin":
                self.loads.append(self.costs.begin_load(GPU))
            case "end" if self.loads:
                self.costs.bear_load(self.loads.pop(0))
            case "take" if self.turn is None:
                self.turn = self.lane.take()
            case "give" if self.turn is not None:
                self.lane.give(self.turn)
                self.bill(self.turn)
                self.turn = None

    def bill(self, turn: Turn) -> None:
        """A third is a caller's, the rest the operator's."""
        third, before = turn.nano // 3, self.spent
        self.spent = structs.replace(
            before,
            callers_nano=before.callers_nano + third,
            operator_nano=before.operator_nano + turn.nano - third,
        )


acts = st.tuples(
    st.sampled_from(["wait", "wait", "take", "give", "begin", "end"]), st.integers(0, 5_000)
)


@given(st.lists(acts, max_size=60))
def test_times_tile_and_shares_add_up_whatever_overlaps(script: Sequence[tuple[str, int]]) -> None:
    box = Box()
    for act, seconds in script:
        box.act(act, seconds)
        reading = box.costs.read(GPU)
        assert reading.error_nano == 0
    box.act("give", 0)
    reading = box.costs.read(GPU)

    elapsed_ns = box.clock.monotonic_ns()
    assert reading.busy_ns + reading.load_ns + reading.idle_ns == elapsed_ns
    assert min(reading.busy_ns, reading.load_ns, reading.idle_ns) >= 0
    assert reading.callers_nano + reading.operator_nano == RATE.whole(reading.busy_ns)
    assert reading.load_nano == RATE.whole(reading.load_ns)
    assert RATE.whole(reading.idle_ns) <= reading.idle_nano <= RATE.whole(reading.idle_ns) + 2
    parts = reading.callers_nano + reading.operator_nano + reading.load_nano + reading.idle_nano
    assert parts == RATE.whole(elapsed_ns)


def test_an_hour_costs_the_rate_however_it_was_spent() -> None:
    box = Box()
    for act in ("begin", "wait", "take", "wait", "end", "give", "wait"):
        box.act(act, 1_200)
    reading = box.costs.read(GPU)

    assert (reading.load_ns, reading.busy_ns, reading.idle_ns) == (1_200 * 10**9,) * 3
    parts = reading.callers_nano + reading.operator_nano + reading.load_nano + reading.idle_nano
    assert parts == RATE.whole(HOUR_NS)


def test_two_loads_at_the_same_time_are_booked_once() -> None:
    box = Box()
    for act in ("begin", "wait", "begin", "wait", "end", "wait", "end"):
        box.act(act, 100)

    assert box.costs.read(GPU).load_ns == 300 * 10**9


def test_what_a_device_was_idle_before_a_load_is_not_the_loads() -> None:
    box = Box()
    for act in ("wait", "begin", "take", "wait", "give", "wait", "end"):
        box.act(act, 100)
    reading = box.costs.read(GPU)

    assert (reading.idle_ns, reading.busy_ns, reading.load_ns) == (100 * 10**9,) * 3


def test_a_load_that_lasts_longer_than_one_within_it_is_booked_whole() -> None:
    box = Box()
    for act in ("begin", "wait", "begin", "wait"):
        box.act(act, 100)
    box.costs.bear_load(box.loads.pop())
    for act in ("wait", "end"):
        box.act(act, 100)

    assert box.costs.read(GPU).load_ns == 300 * 10**9


def read(lane: LaneAccount, *engines: EngineLoad, load_ns: int = 0) -> int:
    return read_device(
        GPU,
        lane,
        engines,
        rate=Rate(2, 1),
        opened_ns=0,
        now_ns=lane.last_ns,
        load_ns=load_ns,
        load_nano=0,
    ).error_nano


FINE = LaneAccount(busy_ns=60, idle_ns=40, nano=120, last_ns=100)
PAID = EngineLoad(callers_nano=100, operator_nano=15, probe_nano=5)


@pytest.mark.parametrize(
    ("lane", "paid", "load_ns", "error"),
    [
        (FINE, PAID, 40, 0),
        (FINE, structs.replace(PAID, callers_nano=99), 40, 1),
        (FINE, structs.replace(PAID, operator_nano=20), 40, 5),
        (FINE, PAID, 41, 2),
        (FINE._replace(idle_ns=39), PAID, 0, 2),
        (FINE._replace(busy_ns=61, idle_ns=39), PAID, 0, 2),
    ],
)
def test_whatever_is_lost_or_made_up_is_noticed(
    lane: LaneAccount, paid: EngineLoad, load_ns: int, error: int
) -> None:
    assert read(lane, paid, load_ns=load_ns) == error


def test_rates_are_rent_and_power_per_hour() -> None:
    rates = node_rates(
        CostSettings(
            gpu_per_hour="2.50",
            power_watts=700,
            price_per_kwh="0.20",
            host_per_hour="0.40",
            egress_per_gib="0.09",
        )
    )

    assert rates.of_device("cuda:1").whole(HOUR_NS) == 2_640_000_000
    assert rates.of_device("cpu:0").is_free
    assert rates.host.whole(HOUR_NS) == 400_000_000
    assert rates.egress.whole(2**30) == 90_000_000
    assert node_rates(CostSettings()).is_free
