"""The durable side of true cost: loads and checks go in; what tenants and models cost and brought in comes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmhost.core.ports import Clock
from llmhost.cost.entries import COSTS, MACHINE, Entry
from llmhost.cost.ledger import append
from llmhost.cost.rows import Load, end_load, insert_checks, insert_load, open_loads
from llmhost.cost.sums import IS_USE
from llmhost.cost.usage import By, group_of
from llmhost.storage.connect import Connection
from llmhost.storage.reader import Reader
from llmhost.storage.writer import Writer

_LARGEST = 2**63 - 1
_WITHIN = "utc_ns >= :since AND utc_ns < :until"
_POOLS = ("gpu_compute", "infrastructure", "model_loading", "safety_moderation")
_TOTAL = f"sum({' + '.join(_POOLS)})"
_SUMS = f"""
    SELECT grp, sum(requests), {", ".join(f"sum({pool})" for pool in _POOLS)}, sum(provisional), sum(amount)
    FROM (
        SELECT {{group}} AS grp, 0 AS requests, {", ".join(f"{pool}_nano AS {pool}" for pool in _POOLS)},
            CASE WHEN load_id IN (SELECT load_id FROM load_ends) THEN 0 ELSE model_loading_nano END AS provisional,
            0 AS amount
        FROM request_costs WHERE {_WITHIN}
        UNION ALL
        SELECT {{group}}, kind = 'request', 0, 0, 0, 0, 0, amount_nano FROM entries
        WHERE {IS_USE} AND {_WITHIN}
    ) GROUP BY grp
"""
_CHECKED = ("busy_ns", "load_ns", "idle_ns")
_BOOKED = ("callers_nano", "operator_nano", "load_nano", "idle_nano", "error_nano")
_DEVICES = (
    f"SELECT device, count(*), {', '.join(f'sum({name})' for name in (*_CHECKED, *_BOOKED))}"
    f" FROM cost_checks WHERE {_WITHIN} GROUP BY device ORDER BY device"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """What one group has cost, by pool, and what it was charged; nano-dollars."""

    group: str | None
    requests: int
    gpu_compute_nano: int
    infrastructure_nano: int
    model_loading_nano: int
    safety_moderation_nano: int
    provisional_nano: int
    """The part of `model_loading_nano` that is made up for when the models are unloaded."""
    amount_nano: int

    @property
    def cost_nano(self) -> int:
        return (
            self.gpu_compute_nano
            + self.infrastructure_nano
            + self.model_loading_nano
            + self.safety_moderation_nano
        )

    @property
    def margin_nano(self) -> int:
        return self.amount_nano - self.cost_nano


class CostBook:
    """Owns the rows of true cost. What reads waits for the disk: off the event loop, call it in a thread."""

    def __init__(self, writer: Writer, reader: Reader, *, node_id: str, clock: Clock) -> None:
        self._writer = writer
        self._reader = reader
        self._node_id = node_id
        self._clock = clock

    async def add_load(self, load: Load) -> None:
        """Raises StorageFailed or Overloaded."""
        await self._writer.run(partial(insert_load, load=load, node_id=self._node_id))

    async def end_load(self, load_id: str) -> None:
        """Make the provisional parts of a load what they should have been. Idempotent."""
        now_ns, node_id = self._clock.utc_ns(), self._node_id
        await self._writer.run(partial(_end_load, load_id=load_id, utc_ns=now_ns, node_id=node_id))

    def end_open_loads(self) -> int:
        """The same for the loads of a process that was killed. Blocks."""
        now_ns, node_id = self._clock.utc_ns(), self._node_id

        def end_all(connection: Connection) -> int:
            found = open_loads(connection, node_id=node_id)
            for load_id in found:
                _end_load(connection, load_id=load_id, utc_ns=now_ns, node_id=node_id)
            return len(found)

        return self._writer.submit(end_all).result()

    async def add_checks(self, checks: Sequence[dict[str, Any]]) -> None:
        now_ns, node_id = self._clock.utc_ns(), self._node_id
        job = partial(insert_checks, checks=checks, utc_ns=now_ns, node_id=node_id)
        await self._writer.run(job)

    def sums(
        self, by: By, *, since_ns: int | None = None, until_ns: int | None = None
    ) -> list[CostRow]:
        """Sums per group over since <= time < until, the dearest first; days in order."""
        order = "1" if by == "day" else f"{_TOTAL} DESC, 2 DESC, 1"
        query = f"{_SUMS.format(group=group_of(by))} ORDER BY {order}"
        names = CostRow.__dataclass_fields__
        rows = self._read(query, since_ns, until_ns)
        return [CostRow(**dict(zip(names, row, strict=True))) for row in rows]

    def devices(
        self, *, since_ns: int | None = None, until_ns: int | None = None
    ) -> list[dict[str, Any]]:
        """What the checks of that time found, added up for each device."""
        names = ("device", "checks", *_CHECKED, *_BOOKED)
        rows = self._read(_DEVICES, since_ns, until_ns)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def _read(
        self, query: str, since_ns: int | None, until_ns: int | None
    ) -> list[tuple[Any, ...]]:
        bounds = {
            "since": -_LARGEST if since_ns is None else since_ns,
            "until": _LARGEST if until_ns is None else until_ns,
        }

        def read(connection: Connection) -> list[tuple[Any, ...]]:
            return connection.execute(query, bounds).fetchall()

        return self._reader.read_now(read)


def _end_load(connection: Connection, *, load_id: str, utc_ns: int, node_id: str) -> None:
    """With an entry for each row, so that none can be changed without breaking the chain. They move no money."""
    rows = end_load(connection, load_id, utc_ns=utc_ns, node_id=node_id)
    entries = [
        Entry(
            request_id=row.request_id,
            kind=row.kind,
            utc_ns=row.utc_ns,
            key_id=row.key_id,
            org=row.org,
            team=row.team,
            model=row.model,
            outcome="",
            debit=COSTS,
            credit=MACHINE,
            costs=row.costs,
        )
        for row in rows
    ]
    append(connection, entries, node_id=node_id)
