"""Rows of `paged` as whoever attends to several tokens is told of them."""

from tests.unit.kernels.paged import Shape, Step

from llmhost.engines.torch.prefill import Form, PrefillRows, RowsThere


def form_of(shape: Shape) -> Form:
    return Form(
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        dim=shape.dim,
        block_tokens=shape.block_tokens,
        dtype=shape.dtype,
        stored=shape.stored or shape.dtype,
    )


def rows_of(step: Step) -> PrefillRows:
    starts = [end - count for end, count in zip(step.ends, step.counts, strict=True)]
    return PrefillRows(
        step.tables.long(),
        starts,
        step.ends,
        step.offsets,
        RowsThere(step.numbers(starts), step.numbers(step.ends), step.numbers(step.offsets)),
        max(step.counts),
    )
