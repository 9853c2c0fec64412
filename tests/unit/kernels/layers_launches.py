"""The fused layers through Triton's real compiler, in the types that a GPU is used with."""

from collections.abc import Iterator

from tests.unit.kernels.gpu_compiler import Launch

from llmhost.engines.torch.kernels import layers


def launches() -> Iterator[Launch]:
    for kind, cache in (("bf16", "bf16"), ("bf16", "fp8e4nv"), ("fp32", "fp32")):
        yield _rope(f"*{kind}", f"*{cache}", has_norms=cache != "bf16")
    for kind in ("bf16", "fp32"):
        yield _norm(f"*{kind}", adds=kind == "bf16")
        yield Launch(
            layers._silu_mul_kernel,
            {"gate_up": f"*{kind}", "out": f"*{kind}", "stride": "i32"},
            {"FEATURES": 14336, "BLOCK": layers.SILU_ELEMENTS, "EARLY": kind == "bf16"},
            {"num_warps": layers.SILU_WARPS, **_options(kind == "bf16")},
            form=kind,
        )


def _norm(kind: str, adds: bool) -> Launch:
    return Launch(
        layers._norm_kernel,
        {
            **dict.fromkeys(("x", "residual", "weight", "out"), kind),
            **dict.fromkeys(("x_stride", "residual_stride"), "i32"),
            "eps": "fp32",
        },
        {"HIDDEN": 3584, "BLOCK": 4096, "ADDS": adds, "EARLY": adds},
        {"num_warps": 16, **_options(adds)},
        form=kind[1:],
    )


def _rope(kind: str, cache: str, has_norms: bool) -> Launch:
    kernel = layers._rope_kernel
    strides = [name for name in kernel.arg_names if name.endswith("stride")]
    return Launch(
        kernel,
        {
            **dict.fromkeys(("qkv", "table", "q_norm", "k_norm", "query_out"), kind),
            **dict.fromkeys(("key_cache", "value_cache"), cache),
            **dict.fromkeys(("positions", "slots"), "*i64"),
            **dict.fromkeys(strides, "i32"),
            "eps": "fp32",
        },
        {
            "HEADS": 32, "KV_HEADS": 8, "DIM": 128, "HALF": 64, "BLOCK_TOKENS": 16, "BLOCK_HEADS": layers.ROPE_HEADS,
            "NORMS": has_norms, "SATURATES": cache == "*fp8e4nv", "EARLY": has_norms,
        },
        {"num_warps": layers.ROPE_WARPS, **_options(has_norms)},
        form=f"{kind[1:]} to {cache[1:]}",
    )  # fmt: skip


def _options(early: bool) -> dict[str, bool]:
    return {"enable_fp_fusion": False, "launch_pdl": early}
