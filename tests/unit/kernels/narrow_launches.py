"""Products of few rows through Triton's real compiler, for every kind of weights."""

from collections.abc import Iterator
from typing import Any

from tests.unit.kernels.gpu_compiler import Launch

from llmhost.engines.torch.kernels import int4, quantise, skinny

WIDTH = 14336


def launches() -> Iterator[Launch]:
    for weight, size in (("*bf16", 2), ("*fp8e4nv", 1)):
        for rows in (1, 16, 64):
            yield _few_rows(weight, rows, (skinny.VECTOR if rows == 1 else skinny.SKINNY)[size])
    for rows in (1, 16, 64):
        yield _four_bits(rows, int4.VECTOR if rows == 1 else int4.SKINNY)
    yield Launch(
        int4._widen,
        {
            "w_ptr": "*u8",
            "scale_ptr": "*bf16",
            "out_ptr": "*bf16",
            "N": "i32",
            "scale_stride": "i32",
        },
        {"K": WIDTH, "CHUNK": int4.CHUNK, "BLOCK_N": int4.WIDEN_ROWS},
        {"num_warps": 4},
    )
    yield Launch(
        quantise._quantise_rows,
        {"x_ptr": "*bf16", "out_ptr": "*fp8e4nv", "scale_ptr": "*fp32"},
        {
            "K": WIDTH, "MOST": quantise.FP8_MOST, "LEAST": quantise.LEAST_SCALE, "BLOCK_K": quantise.BLOCK_K,
        },
        {"num_warps": 8},
    )  # fmt: skip


def _few_rows(weight: str, rows: int, blocks: skinny.Blocks) -> Launch:
    has_scale = weight == "*fp8e4nv"
    types = {
        **dict.fromkeys(("x_ptr", "bias_ptr", "out_ptr"), "*bf16"),
        "w_ptr": weight,
        "scale_ptr": "*fp32" if has_scale else weight,
        "N": "i32",
    }
    constants = {"K": WIDTH, "BLOCK_K": blocks.k, "HAS_SCALE": has_scale}
    size = 1 if has_scale else 2
    stages = skinny.stages_within(blocks.stages, blocks.k * (2 * rows + size * blocks.n))
    return _launch(
        skinny._vector, skinny._skinny, types, constants, rows, blocks, stages, blocks.k * size
    )


def _four_bits(rows: int, blocks: skinny.Blocks) -> Launch:
    types = {
        **dict.fromkeys(("x_ptr", "scale_ptr", "bias_ptr", "out_ptr"), "*bf16"),
        **dict.fromkeys(("N", "scale_stride"), "i32"),
        "w_ptr": "*u8",
    }
    constants = {"K": WIDTH, "CHUNK": int4.CHUNK}
    stages = skinny.stages_within(blocks.stages, int4.CHUNK * (2 * rows + blocks.n // 2))
    return _launch(
        int4._vector, int4._skinny, types, constants, rows, blocks, stages, int4.CHUNK // 2
    )


def _launch(
    one: Any,
    some: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    rows: int,
    blocks: skinny.Blocks,
    stages: int,
    line_bytes: int,
) -> Launch:
    """`line_bytes`: of a row of weights in a block. One row has the stages that it was given."""
    shared = {**constants, "HAS_BIAS": True, "BLOCK_N": blocks.n, "STAGES": blocks.stages}
    options = {"num_warps": blocks.warps}
    form = f"{types['w_ptr'][1:]} {rows} rows"
    if rows == 1:
        return Launch(one, types, shared, options, form, blocks.n * line_bytes)
    shared = {**shared, "BLOCK_M": rows, "STAGES": stages}
    size = blocks.n * line_bytes
    room = skinny.SHARED_BYTES
    return Launch(some, {**types, "M": "i32"}, shared, options, form, size, shared_bytes=room)
