"""Products of few rows through Triton's real compiler, for every kind of weights."""

from collections.abc import Iterator
from typing import Any

from tests.unit.kernels.gpu_compiler import Launch

from llmhost.engines.torch.kernels import int4, quantise, skinny

WIDTH = 14336


def launches() -> Iterator[Launch]:
    for weight, size in (("*bf16", 2), ("*fp8e4nv", 1)):
        for rows in (1, 16, 64):
            yield _few_rows(weight, rows, skinny.blocks_for(rows, size))
    for rows in (1, 16, 64):
        yield _four_bits(rows, int4.blocks_for(rows))
    yield _four_bits(16, int4.blocks_for(16), "fp16")
    yield _four_bits(1, int4.blocks_for(1), has_zeros=True)
    yield _four_bits(64, int4.blocks_for(64), has_zeros=True)
    for has_zeros in (False, True):
        yield Launch(
            int4._widen,
            {
                **dict.fromkeys(("w_ptr", "zero_ptr"), "*u8"),
                **dict.fromkeys(("scale_ptr", "out_ptr"), "*bf16"),
                **dict.fromkeys(("N", "scale_stride", "zero_stride"), "i32"),
            },
            {
                **{"K": WIDTH, "CHUNK": int4.CHUNK},
                **{"HAS_ZEROS": has_zeros, "BLOCK_N": int4.WIDEN_ROWS},
            },
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


def more_launches() -> Iterator[Launch]:
    """What `launches` leaves out, for the report."""
    for rows in (8, 32):
        for weight, size in (("*bf16", 2), ("*fp8e4nv", 1)):
            yield _few_rows(weight, rows, skinny.blocks_for(rows, size))
        yield _four_bits(rows, int4.blocks_for(rows))


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
    block_m = max(rows, skinny.LEAST_ROWS)
    stages = skinny.stages_within(blocks.stages, blocks.k * (2 * block_m + size * blocks.n))
    line_bytes = blocks.k * size
    return _launch(types, constants, rows, blocks, stages, line_bytes)


def _four_bits(
    rows: int, blocks: skinny.Blocks, kind: str = "bf16", *, has_zeros: bool = False
) -> Launch:
    block_m = max(rows, skinny.LEAST_ROWS)
    stages = skinny.stages_within(blocks.stages, int4.CHUNK * (2 * block_m + blocks.n // 2))
    return Launch(
        int4._skinny,
        {
            **dict.fromkeys(("x_ptr", "scale_ptr", "bias_ptr", "out_ptr"), f"*{kind}"),
            **dict.fromkeys(("M", "N", "scale_stride", "zero_stride"), "i32"),
            **dict.fromkeys(("w_ptr", "zero_ptr"), "*u8"),
        },
        {
            **{"K": WIDTH, "CHUNK": int4.CHUNK, "HAS_ZEROS": has_zeros},
            **{"HAS_BIAS": True, "ON_GPU": True},
            **{"BLOCK_N": blocks.n, "BLOCK_M": block_m, "STAGES": stages},
        },
        {"num_warps": blocks.warps},
        form=f"4 bits{'' if kind == 'bf16' else f' {kind}'}{' zeros' if has_zeros else ''} {rows} rows",
        turn_bytes=blocks.n * int4.CHUNK // 2,
        shared_bytes=skinny.SHARED_BYTES,
    )


def _launch(
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
        return Launch(skinny._vector, types, shared, options, form, blocks.n * line_bytes)
    shared = {**shared, "BLOCK_M": max(rows, skinny.LEAST_ROWS), "STAGES": stages}
    size = blocks.n * line_bytes
    room = skinny.SHARED_BYTES
    return Launch(
        skinny._skinny, {**types, "M": "i32"}, shared, options, form, size, shared_bytes=room
    )
