"""One loaded copy of a model: its devices, its engine loop, and what loading it took."""

from dataclasses import dataclass

from llmhost.core.ports import EngineClient, RunnerFacts, Tokenizer
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
