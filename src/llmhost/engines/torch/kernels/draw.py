"""Drawing a token at each place, on the device: greedily, or by a race that each token enters at its own odds.

A token waits for a time that is exponentially distributed, divided by its probability; the shortest wait wins, which
is the softmax's distribution without a softmax (Gumbel, 1954; Efraimidis and Spirakis, 2006). Times come from a hash of
seed, position and token. So what is drawn depends on the row's logits, on what it asks for, its seed and the position:
not on the batch, not on the row's line, not on how the work was split, because the tiles that a line is cut into are
the same everywhere. Equals go to the lower id.

Two launches. The first looks at each tile of each line once, and that is all for rows without filters. The second has
one program per line. It joins the tiles; where a row filters, it reads again those groups of tokens that may hold one
that stays in, finds the edge by bisection over the numbers' bit patterns, and holds the race behind it.

Rounding: the edge of `top_k` and ties are exact. Masses are integers, units of 2**-43 of the best token's weight, so
their sums have no order; a weight is float32, and a nucleus can differ by a token from the one by definition where
the mass reaches the share within about 1e-6. Odds are right to about 1e-6 of a token's probability, and tokens less
likely than 1e-10 are drawn too rarely.
"""

import torch
import triton
from torch import Tensor

from llmhost.engines.torch.asked import DrawAsked
from llmhost.engines.torch.kernels import draw_kernels

GROUP_TOKENS = 128
"""The largest logit of so many tokens is kept, for filters to tell which groups they need not read."""
TILE_GROUPS = 16
"""Groups in a tile, which is what one program of the first launch looks at. Part of what a seed means: references of
the race are the tiles' largest logits, so a change here may change a draw in its last bit."""
TILE_WARPS = 4
NUCLEUS_GROUPS = 128
"""`top_p` is first looked for in so many groups with the largest logits."""
CHUNK_GROUPS = 64
"""Groups that the second launch reads at once."""
SETTLE_WARPS = 16
LONGEST_VOCABULARY = 2**19
"""Masses of longer lines might not fit their integers."""

_SPARE_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
"""So many low bits of a float32 are the same in all numbers of a type."""


class DrawRoom:
    """What the launches leave each other, for up to `places` lines of `vocabulary` logits."""

    def __init__(self, places: int, vocabulary: int, device: torch.device) -> None:
        if vocabulary > LONGEST_VOCABULARY:
            raise ValueError(f"A vocabulary of {vocabulary} is over {LONGEST_VOCABULARY}.")
        self.places, self.vocabulary = places, vocabulary
        self.groups = triton.cdiv(vocabulary, GROUP_TOKENS)
        self.tiles = triton.cdiv(self.groups, TILE_GROUPS)

        def empty(width: int, dtype: torch.dtype) -> Tensor:
            return torch.empty((places, width), dtype=dtype, device=device)

        self.tile_best = empty(self.tiles, torch.float32)
        self.tile_first = empty(self.tiles, torch.int32)
        self.tile_time = empty(self.tiles, torch.float32)
        self.tile_token = empty(self.tiles, torch.int32)
        self.tile_mass = empty(self.tiles, torch.int64)
        self.group_best = empty(self.groups, torch.float32)
        self.listed = empty(self.groups, torch.int32)
        self.edges = empty(1, torch.float32)
        """Of lines that filter: the least logit that stayed in."""

    def fits(self, places: int, vocabulary: int) -> bool:
        return places <= self.places and vocabulary == self.vocabulary


def draw_tokens(logits: Tensor, asked: DrawAsked, out: Tensor, room: DrawRoom) -> None:
    """Draw a token for each line of `logits` [places, vocabulary] into `out` [places], int32.

    `asked` and `out` may be longer than the lines. -1 says that a line holds NaN or positive infinity, or nothing but
    negative infinity. Two launches, which can be captured.
    """
    places, vocabulary = logits.shape
    assert room.fits(places, vocabulary)
    assert logits.stride(1) == 1
    if places == 0:
        return
    # Nothing is fused but what says so: a draw must be the same in all variants of a kernel.
    wishes = (asked.temperature, asked.top_k, asked.top_p, asked.min_p, asked.seed, asked.position)
    tiles = (room.tile_best, room.tile_first, room.tile_time, room.tile_token, room.tile_mass)
    draw_kernels.look[(room.tiles, places)](
        logits,
        logits.stride(0),
        vocabulary,
        room.groups,
        *wishes,
        *tiles,
        room.group_best,
        TILE_GROUPS=TILE_GROUPS,
        GROUP=GROUP_TOKENS,
        num_warps=TILE_WARPS,
        enable_fp_fusion=False,
    )
    draw_kernels.settle[(places,)](
        logits,
        logits.stride(0),
        vocabulary,
        room.groups,
        room.tiles,
        *wishes,
        *tiles,
        room.group_best,
        room.listed,
        room.edges,
        out,
        TILES=triton.next_power_of_2(room.tiles),
        GROUPS=triton.next_power_of_2(room.groups),
        GROUP=GROUP_TOKENS,
        CHUNK=CHUNK_GROUPS,
        FIRST_GROUPS=NUCLEUS_GROUPS,
        SPARE_BITS=_SPARE_BITS[logits.dtype],
        num_warps=SETTLE_WARPS,
        enable_fp_fusion=False,
    )


def compile_draws(vocabulary: int, dtype: torch.dtype, device: torch.device) -> None:
    """Have the compiler make what lines of `vocabulary` need, so that no request waits for it.

    In `dtype`, which the model's logits have, and in float32, in which shaped ones are.
    """
    room = DrawRoom(1, vocabulary, device)
    out = torch.empty(1, dtype=torch.int32, device=device)
    for kind in {dtype, torch.float32}:
        logits = torch.zeros((1, vocabulary), dtype=kind, device=device)
        draw_tokens(logits, DrawAsked.greedy(1, device), out, room)
