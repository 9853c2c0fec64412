"""Kernels are compiled while a model's weights are read: one takes processors, the other takes disks and buses.

The first start on a machine compiles for as long as it loads; later ones find everything in Triton's cache. What is
compiled here in vain costs nothing but time that was there; what is missed is compiled when it is first launched.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("llmhost.engines")

Launch = Callable[[], object]

FP8 = torch.float8_e4m3fn
FED = ((1, 0), (1, 1), (2, 0), (16, 0))
"""Rows of a step, and how far from 16 bytes their places lie: the compiler tells one, many, and multiples of 16 apart,
and so it does with addresses."""
NARROW_ROWS = (1, 4, 16)
"""The same of rows that are multiplied by weights in float8 as they are."""


class CompileAhead:
    """Launches each of `launches` once, in threads."""

    def __init__(self, launches: Sequence[Launch], device: torch.device | None = None) -> None:
        """`device` is where they run, if that is a GPU."""
        self._pool = ThreadPoolExecutor(max(len(launches), 1), "compile")
        self._jobs = [self._pool.submit(_launched, launch, device) for launch in launches]

    def wait(self) -> None:
        """Until all are done. What failed will fail again where it is needed."""
        wait(self._jobs)
        for job in self._jobs:
            if (error := job.exception()) is not None:
                log.debug("compile.failed", exc_info=error)
        self._pool.shutdown()


def _launched(launch: Launch, device: torch.device | None) -> None:
    """A thread's current device is the first one, whatever it was where the thread was made."""
    with torch.cuda.device(device) if device and device.type == "cuda" else nullcontext():
        launch()


def launches_of(
    config: Any,
    *,
    kv_heads: int,
    head_dim: int,
    block_tokens: int,
    dtype: torch.dtype,
    device: torch.device,
    weights: str = "auto",
    kv_dtype: str = "auto",
) -> list[Launch]:
    """What a model of this configuration will launch in all likelihood, on tensors as small as can be.

    `weights` and `kv_dtype` are the options of those names.
    """
    from llmhost.engines.torch.backend_torch import Scores
    from llmhost.engines.torch.backend_triton import warm_up
    from llmhost.engines.torch.kernels import attention, draw, feed, layers, quantise, skinny
    from llmhost.engines.torch.kv import KeyValue
    from llmhost.engines.torch.projections import OWN_MOST_ROWS

    text = config.get_text_config()
    heads, hidden, ffn = text.num_attention_heads, text.hidden_size, text.intermediate_size

    def zeros(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.zeros(shape, dtype=kind, device=device)

    stored = FP8 if kv_dtype == "fp8" else dtype

    def cache(kept: torch.dtype) -> KeyValue:
        return KeyValue(*(zeros(1, block_tokens, kv_heads, head_dim).to(kept) for _ in "kv"))

    def decode(splits: int, kind: torch.dtype, kept: torch.dtype) -> None:
        query = zeros(1, heads, head_dim)
        attention.decode_attention(
            query,
            *cache(kept),
            zeros(1, 1, kind=kind),
            zeros(1, kind=torch.int32),
            torch.empty_like(query),
            room=attention.DecodeRoom(1, heads, kv_heads, head_dim, device, multiprocessors=64),
            scaling=head_dim**-0.5,
            splits=splits,
        )

    def rope(kind: torch.dtype, kept: torch.dtype) -> None:
        layers.rope_and_write(
            zeros(1, (heads + 2 * kv_heads) * head_dim),
            zeros(2, 2, head_dim // 2),
            zeros(1, kind=kind),
            zeros(1, kind=kind) - 1,
            *cache(kept),
            zeros(1, heads, head_dim),
        )

    def fed(count: int, aside: int) -> None:
        ids, drawn, out = (zeros(count, kind=torch.int32) for _ in range(3))
        feed.feed_tokens(ids, zeros(aside + count, kind=torch.int32)[aside:], drawn, out)

    kinds = (torch.int32, torch.int64)  # of steps that are graphs, and of others
    row, eps = zeros(1, hidden), text.rms_norm_eps
    form = (device, dtype, heads, kv_heads, head_dim, block_tokens)
    found: list[Launch] = [
        *(partial(decode, splits, kind, stored) for splits in (1, 2) for kind in kinds),
        *(partial(rope, kind, stored) for kind in kinds),
        *(partial(fed, count, aside) for count, aside in FED),
        *(  # a model is checked over a cache that rounds nothing
            partial(warm_up, *form, [Scores()], stored=kept) for kept in {dtype, stored}
        ),
        partial(layers.rms_norm, row, zeros(hidden), eps),
        partial(layers.add_rms_norm, row, row.clone(), zeros(hidden), eps),
        partial(layers.silu_mul, zeros(1, 2 * ffn)),
    ]
    for kind in {dtype, torch.float32}:
        found.append(partial(_draw, draw, text.vocab_size, kind, device))
    if OWN_MOST_ROWS and dtype.itemsize == 2:
        found += [
            partial(skinny.skinny_linear, zeros(1, width), zeros(64, width))
            for width in {hidden, ffn}
        ]
    if weights == "fp8":
        found += [
            partial(_float8_product, skinny.skinny_linear, zeros(rows, width))
            for width in {hidden, ffn}
            for rows in NARROW_ROWS
        ]
        found += [partial(quantise.quantise_rows, zeros(64, width)) for width in {hidden, ffn}]
    return found


def _float8_product(product: Callable[..., Tensor], rows: Tensor) -> None:
    weight = torch.zeros(64, rows.shape[1], device=rows.device).to(FP8)
    product(rows, weight, scale=torch.zeros(64, device=rows.device))


def _draw(draw: Any, vocabulary: int, kind: torch.dtype, device: torch.device) -> None:
    asked = draw.DrawAsked.greedy(1, device)
    out = torch.empty(1, dtype=torch.int32, device=device)
    logits = torch.zeros((1, vocabulary), dtype=kind, device=device)
    draw.draw_tokens(logits, asked, out, draw.DrawRoom(1, vocabulary, device))
