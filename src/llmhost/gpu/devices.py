"""The devices of this box, each with its memory ledger and its time lane."""

from collections.abc import Callable

import psutil

from llmhost.config.schema.server import DeviceSettings
from llmhost.core.meter import FREE, Rate
from llmhost.core.ports import Clock, Lane
from llmhost.core.units import parse_bytes
from llmhost.gpu.lane import DeviceLane, FreeLane
from llmhost.gpu.memory import DeviceMemory

FREE_SHARE = 0.8
"""Part of the memory that is free at start which models may use when no ceiling is configured."""


class Devices:
    """Finds a device by name. GPUs appear when an engine that can see them reports them with `add`."""

    def __init__(
        self,
        settings: DeviceSettings,
        clock: Clock,
        rate_of: Callable[[str], Rate] = lambda device: FREE,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._rate_of = rate_of
        """What a nanosecond of a device costs."""
        self._memory: dict[str, DeviceMemory] = {}
        self._lanes: dict[str, DeviceLane] = {}
        self._free_lanes: dict[str, FreeLane] = {}
        self.add("cpu:0", self._cpu_bytes())

    def add(self, device: str, capacity_bytes: int) -> None:
        """Make a device known. The first word counts: a later capacity is ignored."""
        if device not in self._memory:
            self._memory[device] = DeviceMemory(device, capacity_bytes)
            self._lanes[device] = DeviceLane(device, self._clock, self._rate_of(device))

    def add_gpu(self, device: str, total_bytes: int) -> None:
        self.add(device, int(total_bytes * self._settings.gpu_memory_fraction))

    def memory(self, device: str) -> DeviceMemory | None:
        """The device's ledger; None for `none`, the device of runners that use none."""
        return self._memory.get(device)

    def lane(self, device: str) -> Lane:
        """The device's time; runners that use none share a lane on which nobody waits."""
        if (lane := self._lanes.get(device)) is not None:
            return lane
        if device not in self._free_lanes:
            self._free_lanes[device] = FreeLane(self._clock, self._rate_of(device))
        return self._free_lanes[device]

    def lanes(self) -> dict[str, Lane]:
        """Every lane that there is, by the device's name."""
        return {**self._lanes, **self._free_lanes}

    def all(self) -> tuple[DeviceMemory, ...]:
        return tuple(self._memory.values())

    def _cpu_bytes(self) -> int:
        if self._settings.cpu_memory is not None:
            return parse_bytes(self._settings.cpu_memory)
        return int(psutil.virtual_memory().available * FREE_SHARE)

    def figures(self) -> list[tuple[str, int, int, int, int]]:
        """(device, capacity bytes, leased bytes, busy ns, idle ns) of each."""
        return [
            (name, memory.capacity_bytes, memory.leased_bytes, *self._lanes[name].totals())
            for name, memory in self._memory.items()
        ]
