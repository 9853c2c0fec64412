"""How much KV memory a model gets: pure arithmetic over what is predicted and what is free."""

from dataclasses import dataclass

from llmhost.config.schema.models import ModelSpec
from llmhost.core.ports import RunnerFacts
from llmhost.core.units import parse_bytes

TYPICAL_SEQUENCE_TOKENS = 1024
"""A full batch of sequences this long is what an unconfigured KV cache is made for."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes to lease, and what they give."""

    weights_bytes: int
    kv_blocks: int
    kv_bytes: int
    max_sequence_length: int
    """Tokens that one sequence may have: by the model, the configuration and the KV room."""
    step_bytes: int = 0
    """Of intermediate results, in the largest step that the limits allow."""
    host_kv_blocks: int = 0
    host_kv_bytes: int = 0
    """In the memory of the host, for what has to leave the KV cache."""


def plan_memory(spec: ModelSpec, facts: RunnerFacts, free_bytes: int | None) -> MemoryPlan:
    """Size the KV cache. `free_bytes` is None for a runner that uses no device.

    Whether the plan fits is the memory ledger's decision: with too little free, the plan asks for the least that
    serves one sequence, and the ledger refuses it with the numbers.
    """
    longest = min(facts.max_sequence_length, spec.max_sequence_length or facts.max_sequence_length)
    one = -(-longest // facts.block_tokens)
    step_bytes = (
        spec.max_tokens_per_batch * facts.step_token_bytes
        + spec.max_batch_size * facts.step_row_bytes
    )
    if spec.kv_memory is not None and facts.kv_block_bytes:
        blocks = max(parse_bytes(spec.kv_memory) // facts.kv_block_bytes, 1)
    else:
        typical = -(-min(longest, TYPICAL_SEQUENCE_TOKENS) // facts.block_tokens)
        blocks = max(spec.max_batch_size * typical, one)
        if free_bytes is not None and facts.kv_block_bytes:
            room = (free_bytes - facts.weights_bytes - step_bytes) // facts.kv_block_bytes
            blocks = min(blocks, max(room, typical))
    host_blocks = 0
    if spec.kv_host_memory is not None and facts.kv_block_bytes:
        host_blocks = parse_bytes(spec.kv_host_memory) // facts.kv_block_bytes
    return MemoryPlan(
        weights_bytes=facts.weights_bytes,
        kv_blocks=blocks,
        kv_bytes=blocks * facts.kv_block_bytes,
        step_bytes=step_bytes,
        host_kv_blocks=host_blocks,
        host_kv_bytes=host_blocks * facts.kv_block_bytes,
        max_sequence_length=min(longest, blocks * facts.block_tokens),
    )
