"""Models asleep: their weights wait in host memory and lease nothing of a device until they wake."""

from llmhost.core.errors import Conflict, LlmhostError, ModelUnavailable
from llmhost.cost.attribution import TrueCosts
from llmhost.deploy.drafts import draft_holder
from llmhost.deploy.replica import Replica
from llmhost.gpu.devices import Devices
from llmhost.gpu.memory import DeviceMemory, Lease

HOST = "cpu:0"
"""The device in whose memory blocks are kept that have to leave another one's, or its own KV cache."""


class Sleepers:
    """Owns what each sleeping model takes to wake."""

    def __init__(self, devices: Devices, costs: TrueCosts) -> None:
        self._devices = devices
        self._costs = costs
        self._asleep: dict[str, list[tuple[DeviceMemory, Lease]]] = {}

    def check(self, replica: Replica) -> None:
        """Raises Conflict where a model gains nothing by sleeping, or can't."""
        if not replica.facts.can_sleep:
            device = replica.facts.device
            why = (
                f"it is on {device}, where its weights take the same memory asleep"
                if device == HOST
                else "its engine does not do that"
            )
            raise Conflict(
                f"The model {replica.lease_holder} can't be put to sleep: {why}. Unload it instead."
            )

    async def put_to_sleep(self, replica: Replica, *, drain_s: float) -> int:
        """Have the weights in host memory, and lease nothing of the device; the bytes of the weights.

        Raises DoesNotFit when the host has no room for them, and then the model stays as it is.
        """
        holder = replica.lease_holder
        leases = self._leases_of(holder)
        size_bytes = sum(lease.weights_bytes for _, lease in leases)
        host = self._devices.memory(HOST)
        if host is not None and size_bytes:
            host.grant(_asleep(holder), weights_bytes=size_bytes, kv_bytes=0)
        try:
            await replica.engine.sleep(drain_s=drain_s)
        except BaseException as error:
            self.forget(holder)
            if isinstance(error, LlmhostError) or not isinstance(error, Exception):
                raise
            raise ModelUnavailable(
                f"The model {holder} could not be put to sleep: {type(error).__name__}: {error}"
            ) from error
        for memory, lease in leases:
            memory.give_back(lease.holder)
        self._asleep[holder] = leases
        return size_bytes

    async def wake(self, replica: Replica) -> None:
        """Have a sleeping model on its device again.

        Raises DoesNotFit, or OutOfMemory where more is taken than the ledger knows; then it sleeps on.
        """
        leases = self._asleep[replica.lease_holder]
        begun = self._costs.begin_load(replica.facts.device)
        granted: list[tuple[DeviceMemory, Lease]] = []
        try:
            for memory, lease in leases:
                memory.grant(
                    lease.holder,
                    weights_bytes=lease.weights_bytes,
                    kv_bytes=lease.kv_bytes,
                    step_bytes=lease.step_bytes,
                )
                granted.append((memory, lease))
            await replica.engine.wake()
        except BaseException:
            for memory, lease in granted:
                memory.give_back(lease.holder)
            raise
        finally:
            self._costs.bear_load(begun)
        self.forget(replica.lease_holder)

    def _leases_of(self, holder: str) -> list[tuple[DeviceMemory, Lease]]:
        """What a model and the one that guesses for it hold of devices."""
        holders = (holder, draft_holder(holder))
        return [
            (memory, lease)
            for memory in self._devices.all()
            for lease in memory.leases()
            if lease.holder in holders
        ]

    def forget(self, holder: str) -> None:
        self._asleep.pop(holder, None)
        if (host := self._devices.memory(HOST)) is not None:
            host.give_back(_asleep(holder))


def _asleep(holder: str) -> str:
    return f"{holder} (asleep)"
