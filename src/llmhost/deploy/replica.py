"""One loaded copy of a model: its devices, its engine loop, and what loading it took."""

from dataclasses import dataclass

from llmhost.core.errors import ModelUnavailable
from llmhost.core.ports import EngineClient, RunnerFacts, Tokenizer
from llmhost.deploy.adapters import AdapterHold, AdapterShelf
from llmhost.deploy.catalogue import Served
from llmhost.deploy.memory_plan import MemoryPlan


@dataclass(frozen=True, slots=True)
class Replica:
    """`devices` is a tuple because one replica may span several one day; it has one today."""

    devices: tuple[str, ...]
    engine: EngineClient
    tokenizer: Tokenizer
    plan: MemoryPlan
    facts: RunnerFacts
    lease_holder: str
    load_s: float
    ready_utc_ns: int
    measured_bytes: int
    """What the device says that loading took; on the CPU, by how much the process grew meanwhile."""
    adapters: AdapterShelf | None = None
    """None where the engine runs no LoRA adapters."""
    load_id: str | None = None
    """Under which its load is booked; None where a load costs nothing."""
    mark: str = ""
    """What the files held that it was read from, and in what precision it computes."""

    async def hold_adapter(self, served: Served) -> AdapterHold:
        """The adapter, loaded and kept until it is let go. Raises ModelUnavailable, DoesNotFit or Overloaded."""
        if self.adapters is None or served.adapter is None:
            raise ModelUnavailable(
                f"The model {self.lease_holder} runs no LoRA adapters: its engine or its task has none."
                f" Ask for {served.entry.name!r} alone."
            )
        return await self.adapters.hold(served.adapter, served.source)


def together(mark: str, adapter_key: str | None) -> str:
    """The mark of a model with one of its adapters, or alone."""
    return mark if adapter_key is None else f"{mark} {adapter_key}"
