"""Whether a device's time and its cost add up: busy, load and idle tile the time, and shares are all that was busy.

Pure: it is handed what lanes and engines say.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from llmhost.core.meter import Rate
from llmhost.core.ports import EngineLoad, LaneAccount


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One device since it was opened. Times in nanoseconds, money in nano-dollars."""

    device: str
    busy_ns: int
    load_ns: int
    """Of the time that was not busy, what passed while a model was loaded."""
    idle_ns: int
    """The rest."""
    callers_nano: int
    """Shares of sequences."""
    operator_nano: int
    """Work done twice, rejected guesses, failed steps."""
    load_nano: int
    """Loads, and the checks of the models that they brought."""
    idle_nano: int
    error_nano: int
    """What does not add up: 0."""

    def since(self, before: "Reading | None") -> dict[str, Any]:
        """What has come since an earlier reading, but for the error, which is the whole one."""
        now = asdict(self)
        if before is None:
            return now
        old = asdict(before)
        return {
            name: value if name in ("device", "error_nano") else value - old[name]
            for name, value in now.items()
        }


def read_device(
    device: str,
    lane: LaneAccount,
    engines: Iterable[EngineLoad],
    *,
    rate: Rate,
    opened_ns: int | None,
    now_ns: int,
    load_ns: int,
    load_nano: int,
) -> Reading:
    """`engines` are all that ever ran on the device. Without `opened_ns` turns overlap, and nothing tiles.

    What the device was idle costs what is left of the cost of all its time, so that the parts add up to it exactly.
    """
    loads = list(engines)
    callers = sum(load.callers_nano for load in loads)
    operator = sum(load.operator_nano for load in loads)
    probes = sum(load.probe_nano for load in loads)
    error = abs(lane.nano - callers - operator - probes)
    error += abs(rate.whole(lane.busy_ns) - lane.nano)
    idle_ns = idle_nano = 0
    if opened_ns is not None:
        idle_ns = lane.idle_at(now_ns) - load_ns
        gap_ns = abs(lane.last_ns - opened_ns - lane.busy_ns - lane.idle_ns) + max(-idle_ns, 0)
        error += -(-gap_ns * rate.nano // rate.per)
        whole_ns = lane.busy_ns + load_ns + max(idle_ns, 0)
        idle_nano = max(rate.whole(whole_ns) - rate.whole(lane.busy_ns) - load_nano, 0)
    return Reading(
        device=device,
        busy_ns=lane.busy_ns,
        load_ns=load_ns,
        idle_ns=idle_ns,
        callers_nano=callers,
        operator_nano=operator,
        load_nano=load_nano + probes,
        idle_nano=idle_nano,
        error_nano=error,
    )
