"""The KV cache's size: pure arithmetic that never plans past what is free or what was asked for."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.deploy.fakes import facts

from llmhost.config.schema.models import ModelSpec
from llmhost.core.ports import RunnerFacts
from llmhost.deploy.memory_plan import MemoryPlan, plan_memory

FACTS = st.builds(
    facts,
    max_sequence_length=st.integers(1, 200_000),
    block_tokens=st.sampled_from([8, 16, 32, 64]),
    kv_block_bytes=st.sampled_from([0, 1, 10, 4096, 2**20]),
    weights_bytes=st.integers(0, 2**40),
)
SPECS = st.builds(
    ModelSpec,
    max_batch_size=st.integers(1, 4096),
    max_sequence_length=st.none() | st.integers(1, 300_000),
    kv_memory=st.none() | st.integers(1, 2**36).map(str),
)
FREE = st.none() | st.integers(0, 2**41)


def least(spec: ModelSpec, known: RunnerFacts) -> int:
    """Blocks of one typical sequence: what a plan asks for when next to nothing is free."""
    longest = min(known.max_sequence_length, spec.max_sequence_length or 10**9, 1024)
    return -(-longest // known.block_tokens)


@given(SPECS, FACTS, FREE)
def test_a_plan_serves_at_least_one_sequence_and_its_bytes_are_its_blocks(
    spec: ModelSpec, known: RunnerFacts, free: int | None
) -> None:
    plan = plan_memory(spec, known, free)

    assert plan.kv_blocks >= 1
    assert plan.max_sequence_length >= 1
    assert plan.kv_bytes == plan.kv_blocks * known.kv_block_bytes
    assert plan.weights_bytes == known.weights_bytes


@given(SPECS, FACTS, FREE)
def test_no_sequence_may_be_longer_than_model_configuration_or_kv_room(
    spec: ModelSpec, known: RunnerFacts, free: int | None
) -> None:
    plan = plan_memory(spec, known, free)

    assert plan.max_sequence_length <= known.max_sequence_length
    assert plan.max_sequence_length <= plan.kv_blocks * known.block_tokens
    if spec.max_sequence_length is not None:
        assert plan.max_sequence_length <= spec.max_sequence_length


@given(SPECS.filter(lambda spec: spec.kv_memory is None), FACTS, st.integers(0, 2**41))
def test_without_a_wish_a_plan_takes_no_more_than_is_free_or_the_least_that_serves(
    spec: ModelSpec, known: RunnerFacts, free: int
) -> None:
    plan = plan_memory(spec, known, free)
    fits = plan.weights_bytes + plan.kv_bytes <= free

    assert fits or plan.kv_blocks == least(spec, known) or known.kv_block_bytes == 0


@given(SPECS.filter(lambda spec: spec.kv_memory is not None), FACTS, FREE)
def test_configured_kv_memory_is_filled_and_not_exceeded(
    spec: ModelSpec, known: RunnerFacts, free: int | None
) -> None:
    plan, asked = plan_memory(spec, known, free), int(spec.kv_memory or 0)
    if known.kv_block_bytes == 0:
        return

    assert plan.kv_blocks == max(asked // known.kv_block_bytes, 1)
    assert plan.kv_bytes <= max(asked, known.kv_block_bytes)


def test_with_room_to_spare_a_full_batch_of_typical_sequences_fits_and_one_of_full_length() -> None:
    plan = plan_memory(ModelSpec(max_batch_size=4), facts(max_sequence_length=100_000), 10**9)

    assert plan == MemoryPlan(
        weights_bytes=1000,
        kv_blocks=6250,  # one of 100,000 tokens, which is more than four of 1,024
        kv_bytes=62_500,
        max_sequence_length=100_000,
    )


def test_little_memory_shortens_the_longest_sequence() -> None:
    plan = plan_memory(ModelSpec(), facts(max_sequence_length=100_000), 1000 + 100 * 10)

    assert (plan.kv_blocks, plan.max_sequence_length) == (100, 1600)


def test_the_largest_step_has_its_memory_before_the_kv_cache_gets_the_rest() -> None:
    known = facts(weights_bytes=1000, kv_block_bytes=10, block_tokens=8)
    hungry = replace(known, step_token_bytes=10, step_row_bytes=100)
    spec = ModelSpec(max_batch_size=64, max_tokens_per_batch=100)
    plan = plan_memory(spec, hungry, None)
    assert plan.step_bytes == 100 * 10 + 64 * 100

    free = 1000 + plan.step_bytes + 600
    assert plan_memory(spec, known, free).kv_blocks == (plan.step_bytes + 600) // 10
    assert plan_memory(spec, hungry, free).kv_blocks == 60
