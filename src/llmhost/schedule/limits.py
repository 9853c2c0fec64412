"""The limits that a scheduler keeps."""

from dataclasses import dataclass

LEAST_CHUNK_TOKENS = 8
"""A prompt gets on by so much in every step, whatever the latency of others is to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Limits of one model's steps; `kv_blocks` comes from the memory lease."""

    max_batch_size: int
    max_tokens_per_batch: int
    max_sequence_length: int
    kv_blocks: int
    block_tokens: int
    watermark_share: float = 0.02
    """Part of the KV blocks that admission leaves free for growth."""
    target_itl_ms: float | None = None
    """What a step with prompts in it may take while others decode."""
    least_chunk_tokens: int = LEAST_CHUNK_TOKENS
    """Of prompts, in a step where others decode and no target is set."""
    rows_at_once: int = 1
    """Tokens that the runner computes together: chunks of prompts are cut so that steps are multiples of it."""
    prefix_cache: bool = True
    """Keep computed blocks for later prompts. Choices of one request share theirs in any case."""
    host_kv_blocks: int = 0
    """Blocks in host memory for what has to leave the device."""
