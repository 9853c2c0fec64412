"""The drawing kernels through Triton's real compiler, for the types that logits have."""

from collections.abc import Iterator

from tests.unit.kernels.gpu_compiler import Launch

from llmhost.engines.torch.kernels import draw, draw_kernels

NUMBERS = ("temperature", "top_p", "min_p", "tile_best", "tile_time", "group_best", "edges")
WHOLE = ("top_k", "tile_first", "tile_token", "listed", "out")
COUNTS = ("stride", "vocabulary", "groups", "tiles")


def launches() -> Iterator[Launch]:
    for kind, spare_bits in (("bf16", 16), ("fp32", 0)):
        types = {
            "logits": f"*{kind}",
            **dict.fromkeys(COUNTS, "i32"),
            **dict.fromkeys(NUMBERS, "*fp32"),
            **dict.fromkeys(WHOLE, "*i32"),
            **dict.fromkeys(("seed", "position", "tile_mass"), "*i64"),
        }
        yield Launch(
            draw_kernels.look,
            types,
            {"TILE_GROUPS": draw.TILE_GROUPS, "GROUP": draw.GROUP_TOKENS},
            {"num_warps": draw.TILE_WARPS, "enable_fp_fusion": False},
            form=kind,
            odd=("groups",),
        )
        yield Launch(
            draw_kernels.settle,
            types,
            {
                "TILES": 64, "GROUPS": 1024, "GROUP": draw.GROUP_TOKENS, "CHUNK": draw.CHUNK_GROUPS,
                "FIRST_GROUPS": draw.NUCLEUS_GROUPS, "SPARE_BITS": spare_bits,
            },
            {"num_warps": draw.SETTLE_WARPS, "enable_fp_fusion": False},
            form=kind,
            odd=("groups", "tiles"),
        )  # fmt: skip
