"""The memory ledger of one device: leases in, free bytes out. Leases never exceed the device."""

from dataclasses import dataclass

from llmhost.core.errors import DoesNotFit
from llmhost.core.units import show_bytes


@dataclass(frozen=True, slots=True)
class Lease:
    """Bytes that a deployment may use."""

    holder: str
    weights_bytes: int
    kv_bytes: int
    step_bytes: int = 0
    """Intermediate results of the largest step."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.step_bytes


class DeviceMemory:
    """The only writer of a device's memory ledger."""

    def __init__(self, device: str, capacity_bytes: int) -> None:
        self.device = device
        self.capacity_bytes = capacity_bytes
        self._leases: dict[str, Lease] = {}

    @property
    def leased_bytes(self) -> int:
        return sum(lease.total_bytes for lease in self._leases.values())

    @property
    def free_bytes(self) -> int:
        return self.capacity_bytes - self.leased_bytes

    def leases(self) -> tuple[Lease, ...]:
        return tuple(self._leases.values())

    def grant(
        self, holder: str, *, weights_bytes: int, kv_bytes: int, step_bytes: int = 0
    ) -> Lease:
        """Lease memory to `holder`. Raises DoesNotFit with the numbers, and then nothing is leased."""
        assert holder not in self._leases, f"{holder} holds a lease already"
        lease = Lease(holder, weights_bytes, kv_bytes, step_bytes)
        if lease.total_bytes > self.free_bytes:
            raise DoesNotFit(self._refusal(lease))
        self._leases[holder] = lease
        return lease

    def give_back(self, holder: str) -> None:
        """End a lease. Idempotent."""
        self._leases.pop(holder, None)

    def _refusal(self, lease: Lease) -> str:
        held = ", ".join(f"{le.holder} {show_bytes(le.total_bytes)}" for le in self.leases())
        return (
            f"{lease.holder} needs {show_bytes(lease.total_bytes)} on {self.device}"
            f" ({show_bytes(lease.weights_bytes)} weights, {show_bytes(lease.kv_bytes)} KV cache,"
            f" {show_bytes(lease.step_bytes)} for a step), but"
            f" {show_bytes(self.free_bytes)} of {show_bytes(self.capacity_bytes)} are free"
            f"{f' (loaded: {held})' if held else ''}."
            " Unload a model, lower kv_memory, max_batch_size or max_tokens_per_batch, or take a smaller model."
        )
