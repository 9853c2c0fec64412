"""The durable side of true cost: loads and checks go in, and what devices cost comes out."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from llmhost.core.ports import Clock
from llmhost.cost.entries import COSTS, MACHINE, Entry
from llmhost.cost.ledger import append
from llmhost.cost.rows import Load, end_load, insert_checks, insert_load, open_loads
from llmhost.storage.connect import Connection
from llmhost.storage.reader import Reader
from llmhost.storage.writer import Writer

_LARGEST = 2**63 - 1
_WITHIN = "utc_ns >= :since AND utc_ns < :until"
_CHECKED = ("busy_ns", "load_ns", "idle_ns")
_BOOKED = ("callers_nano", "operator_nano", "load_nano", "idle_nano", "error_nano")
_DEVICES = (
    f"SELECT device, count(*), {', '.join(f'sum({name})' for name in (*_CHECKED, *_BOOKED))}"
    f" FROM cost_checks WHERE {_WITHIN} GROUP BY device ORDER BY device"
)


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
