"""An hour of a node, as long as a test makes it: what is done with every device's time, and who pays for it, is known
apart from the node's own books, and compared with them after every act."""

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.unit.cost.hour_models import Asked, HourClock, Model, SeenLane, hour_clock

from llmhost.core.meter import Rate
from llmhost.core.output import Usage
from llmhost.core.ports import Lane
from llmhost.core.sequence import Purpose
from llmhost.cost import ledger
from llmhost.cost.attribution import LoadBegun, TrueCosts
from llmhost.cost.costbook import CostBook
from llmhost.cost.rates import NodeRates
from llmhost.cost.rows import SCHEMA, CostRow, RequestCost, cost_row, insert_costs
from llmhost.gpu.lane import DeviceLane, FreeLane
from llmhost.storage.reader import Reader
from llmhost.storage.writer import Writer
from llmhost.testing import at

HOUR_NS = 3_600 * 10**9
DEVICES = ("cuda:0", "cuda:1", "cpu:0", "none")
NODE = "node-1"
ACTS = {
    "turn": 90,
    "ask": 20,
    "wait": 8,
    "cancel": 3,
    "preempt": 2,
    "resize": 1,
    "storm": 1,
    "begin_load": 2,
    "end_load": 2,
    "sleep": 1,
    "wake": 2,
    "unload": 1,
    "check": 1,
}


@dataclass
class Loading:
    """A load that is under way, or a model that wakes."""

    number: int
    begun: LoadBegun
    model: Model
    is_waking: bool


@dataclass
class Sums:
    """What requests were told, added up."""

    usage: Usage = field(default_factory=Usage)
    infrastructure_nano: int = 0
    requests: int = 0


class Hour:
    """A node with four devices, and models that come and go."""

    def __init__(self, folder: Path, seed: int, rates: NodeRates) -> None:
        self.luck = random.Random(seed)
        self.rates = rates
        self.clock: HourClock = hour_clock(at("2026-01-10T12:00Z"))
        self.writer = Writer(folder / "money.db", migrations=[ledger.SCHEMA, SCHEMA])
        self.reader = Reader(folder / "money.db")
        self.book = CostBook(self.writer, self.reader, node_id=NODE, clock=self.clock)
        self.lanes = {device: self._lane(device) for device in DEVICES}
        self.sent_bytes = 0
        self.costs = TrueCosts(
            rates,
            self.clock,
            self.book,
            lanes=lambda: dict(self.lanes),
            sent_bytes=lambda: self.sent_bytes,
        )
        self.models: list[Model] = []
        self.loading: list[Loading] = []
        self.told: dict[str, Sums] = {device: Sums() for device in DEVICES}
        self.done: Counter[str] = Counter()
        self.steps = self.guesses = self.preemptions = self.wasted_steps = 0
        self._numbers = iter(range(1, 10**9))

    def _lane(self, device: str) -> SeenLane:
        rate = self.rates.of_device(device)
        real: Lane = (
            FreeLane(self.clock, rate) if device == "none" else DeviceLane(device, self.clock, rate)
        )
        return SeenLane(real, self.clock.times[device])

    @property
    def elapsed_ns(self) -> int:
        return self.clock.monotonic_ns()

    async def close(self) -> None:
        self.writer.close()
        self.reader.close()

    # ------------------------------------------------------------ acts

    async def act(self) -> None:
        [name] = self.luck.choices(list(ACTS), list(ACTS.values()))
        do: Callable[[], Awaitable[None]] = getattr(self, f"_{name}")
        await do()
        self.done[name] += 1
        self.audit()

    async def _turn(self) -> None:
        for model in self.luck.sample(self.awake, min(2, len(self.awake))):
            self._make_way(model)
            self._end(model, model.turn(guess=self.luck.random() < 0.7))
            model.runner.bad_luck = max(model.runner.bad_luck - 0.02, 0.0)
            if model.is_broken:
                await self._leave(model)
            self.clock.passes(self.luck.randrange(2_000_000))  # the host's own time

    async def _ask(self) -> None:
        for model in self.luck.sample(self.awake, min(1, len(self.awake))):
            for _ in range(self.luck.randrange(1, 4)):
                self._end(model, model.ask(self.costs.join()))

    async def _wait(self) -> None:
        self.clock.passes(self.luck.choice([1, 977, 40_000_000, 3_000_000_007]))
        self.sent_bytes += self.luck.randrange(5_000)

    async def _cancel(self) -> None:
        for model in self.models:
            if model.live and self.luck.random() < 0.5:
                self._end(model, model.cancel())

    async def _preempt(self) -> None:
        for model in self.awake:
            self._end(model, model.preempt())

    async def _resize(self) -> None:
        for model in self.luck.sample(self.awake, min(1, len(self.awake))):
            self._end(model, model.resize())

    async def _storm(self) -> None:
        """For some steps things go wrong."""
        for model in self.luck.sample(self.awake, min(1, len(self.awake))):
            model.runner.bad_luck = self.luck.choice([0.1, 0.3, 0.9])

    async def _begin_load(self) -> None:
        if len(self.models) + len(self.loading) >= 6:
            return
        number, device = next(self._numbers), self.luck.choice(DEVICES)
        since = self.costs.moment()
        self.clock.times[device].loads.add(number)
        self.clock.passes(self.luck.randrange(5_000_000))
        model = Model(
            f"m{number}@1",
            device,
            self.lanes[device],
            self.clock,
            self.luck,
            runs_ahead=self.luck.random() < 0.5,
            guesses=self.luck.random() < 0.4,
        )
        begun = self.costs.begin_load(device, since)
        self.loading.append(Loading(number, begun, model, is_waking=False))

    async def _end_load(self) -> None:
        if self.loading:
            await self._finish(self.loading.pop(self.luck.randrange(len(self.loading))))

    async def _finish(self, load: Loading) -> None:
        self.clock.passes(self.luck.randrange(1_000_000_000))
        model, times = load.model, self.clock.times[load.model.device]
        if load.is_waking:
            model.bed.get_up()
            model.is_asleep = False
        elif self.luck.random() < 0.8:
            self.costs.engine_started(model.device, model.load)
            self._probe(model)
            booked = self.costs.end_load(load.begun, model.name, model.load)
            times.end_load(load.number)
            model.load_id = await booked
            self.models.append(model)
            return
        self.costs.bear_load(load.begun)
        times.end_load(load.number)

    def _probe(self, model: Model) -> None:
        ended = model.ask(purpose=Purpose.PROBE)
        while not ended:
            self._make_way(model)
            ended = model.turn(guess=False)
        [asked] = ended
        assert asked.usage is not None
        assert asked.usage.cost_nano == 0
        self.told[model.device].usage += Usage(engine_ns=asked.usage.engine_ns)

    async def _sleep(self) -> None:
        for model in self.luck.sample(self.awake, min(1, len(self.awake))):
            self._end(model, model.end())
            model.bed.lie_down()
            model.is_asleep = True
            self.clock.passes(self.luck.randrange(1_000_000))

    async def _wake(self) -> None:
        waking = [load.model for load in self.loading]
        asleep = [model for model in self.models if model.is_asleep and model not in waking]
        for model in asleep[:1]:
            number = next(self._numbers)
            begun = self.costs.begin_load(model.device)
            self.clock.times[model.device].loads.add(number)
            self.loading.append(Loading(number, begun, model, is_waking=True))

    async def _unload(self) -> None:
        for model in self.luck.sample(self.models, min(1, len(self.models))):
            if model not in [load.model for load in self.loading]:
                await self._leave(model)

    async def _check(self) -> None:
        assert all(reading.error_nano == 0 for reading in await self.costs.check())

    # ------------------------------------------------------------ what acts are made of

    @property
    def awake(self) -> list[Model]:
        return [model for model in self.models if not model.is_asleep]

    def _make_way(self, model: Model) -> None:
        """Models on one device take turns: what another has in the air lands first."""
        for other in self.models:
            if other is not model and other.lane is model.lane and other.flights.is_up:
                self._end(other, other.land())

    def _end(self, model: Model, ended: list[Asked]) -> None:
        rows: list[CostRow] = []
        for asked in ended:
            assert asked.usage is not None
            told, usage = self.told[model.device], asked.usage
            costs = self.costs.settle(usage, asked.ticket, model.load_id)
            assert costs is not None
            told.usage += usage
            told.infrastructure_nano += costs.infrastructure_nano
            told.requests += 1
            bearer = RequestCost(
                request_id=f"req_{next(self._numbers)}",
                utc_ns=self.clock.utc_ns(),
                key_id=None,
                org=asked.spec.tenant,
                team=None,
                model=model.name,
                costs=costs,
            )
            rows.append(cost_row(bearer, costs, NODE))
            self.sent_bytes += 100 * usage.completion_tokens
        if rows:
            self.writer.submit(partial(insert_costs, rows=rows))

    async def _leave(self, model: Model) -> None:
        self._end(model, model.end())
        self.models.remove(model)
        self.steps += len(model.results)
        self.preemptions += model.scheduler.preemptions
        self.guesses += sum(row.drafts for result in model.results for row in result.rows)
        self.wasted_steps += model.flights.wasted_steps + model.stepper.retries
        self.costs.engine_ended(model.device, model.load)
        await self.costs.unload(model.load_id)

    # ------------------------------------------------------------ audits

    def audit(self) -> None:
        """Whatever runs right now, all time that is over has been told apart, and all that it cost is somebody's."""
        for device, lane in self.lanes.items():
            reading, times = self.costs.read(device), self.clock.times[device]
            assert reading.error_nano == 0, (device, reading)
            if lane.opened_ns is not None and not times.is_busy:
                found = (reading.busy_ns, reading.load_ns, reading.idle_ns)
                assert found == (times.busy_ns, times.load_ns, times.idle_ns), device
                assert sum(found) == self.elapsed_ns

    async def end(self) -> None:
        """Everybody goes home, and the hour's books are closed."""
        while self.loading:
            await self._finish(self.loading.pop())
        for model in list(self.models):
            await self._leave(model)
        await self._check()
        self.audit()
        for device in DEVICES:
            self._check_device(device)
        self._check_infrastructure()
        await self._check_loads()

    def _check_device(self, device: str) -> None:
        reading, told = self.costs.read(device), self.told[device]
        rate, lane = self.rates.of_device(device), self.lanes[device]
        assert told.usage.cost_nano == reading.callers_nano, "requests bear what callers cost"
        assert 0 <= told.usage.input_cost_nano <= told.usage.cost_nano
        assert sum(turn.nano for turn in lane.turns) == rate.whole(reading.busy_ns)
        assert sum(turn.ended_ns - turn.started_ns for turn in lane.turns) == reading.busy_ns
        if lane.opened_ns is None:
            return
        assert all(before.ended_ns <= after.started_ns for before, after in pairwise(lane.turns))
        assert reading.busy_ns + reading.load_ns + reading.idle_ns == self.elapsed_ns
        parts = (
            reading.callers_nano,
            reading.operator_nano,
            reading.load_nano,
            reading.idle_nano,
        )
        assert min(parts) >= 0
        assert sum(parts) == rate.whole(self.elapsed_ns)

    def _check_infrastructure(self) -> None:
        pools = self.costs.infrastructure
        assert pools.host.error_nano == pools.egress.error_nano == 0
        borne = sum(told.infrastructure_nano for told in self.told.values())
        nobodys = sum(pool.unowned_nano + pool.rest for pool in (pools.host, pools.egress))
        assert pools.host.heads == pools.egress.heads == 0
        host, egress = self.rates.host, self.rates.egress
        assert borne + nobodys == host.whole(self.elapsed_ns) + egress.whole(self.sent_bytes)

    async def _check_loads(self) -> None:
        """Each load is borne whole, and what is kept of the checks adds up to the whole hour."""
        found: Any = await self.writer.run(_read_rows)
        costs, borne, checks = found
        assert borne == {
            load_id: nano for load_id, nano in costs.items() if nano or load_id in borne
        }
        for device in DEVICES:
            reading = self.costs.read(device)
            kept = checks.get(device)
            assert kept is None or kept == (
                reading.busy_ns,
                reading.load_ns,
                reading.idle_ns,
                reading.callers_nano,
                reading.operator_nano,
                reading.load_nano,
                reading.idle_nano,
            )


def _read_rows(connection: Any) -> tuple[dict[str, int], dict[str, int], dict[str, Any]]:
    costs = dict(connection.execute("SELECT load_id, cost_nano FROM loads"))
    borne = dict(
        connection.execute(
            "SELECT load_id, sum(model_loading_nano) FROM request_costs WHERE load_id IS NOT NULL"
            " GROUP BY load_id"
        )
    )
    names = "busy_ns", "load_ns", "idle_ns", "callers", "operator", "load", "idle"
    sums = ", ".join(f"sum({name if '_' in name else name + '_nano'})" for name in names)
    rows = connection.execute(f"SELECT device, {sums} FROM cost_checks GROUP BY device")
    return costs, borne, {device: tuple(values) for device, *values in rows}


async def live_through(hour: Hour, acts: int, until_ns: int = 0) -> None:
    """So many acts at least, and so much time."""
    await hour._begin_load()
    await hour._end_load()
    done = 0
    while done < acts or hour.elapsed_ns < until_ns:
        await hour.act()
        done += 1
    await hour.end()


def some_rates(luck: random.Random) -> NodeRates:
    """Odd ones, so that nothing divides."""

    def rate(most: int) -> Rate:
        return Rate(luck.randrange(1, most), luck.randrange(1, HOUR_NS))

    return NodeRates(
        gpu=rate(3 * 10**9),
        cpu=rate(10**9),
        host=rate(10**9),
        egress=Rate(luck.randrange(10**9), 2**30),
        requests_per_load=luck.randrange(1, 50),
    )
