"""Sequences fed in chunks, in mixed steps with padding, through anything that has `FusedDecoder`'s `hidden`."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from llmhost.engines.torch.kv import KeyValue

BLOCK_TOKENS = 4


class PagedSteps:
    """Keys and values of some sequences, their blocks strewn over caches full of NaN."""

    def __init__(self, model: Any, texts: Sequence[Sequence[int]]) -> None:
        self._device, config = model.device, model.config
        counts = [-(-len(text) // BLOCK_TOKENS) for text in texts]
        rng = torch.Generator("cpu").manual_seed(0)
        strewn = torch.randperm(sum(counts) + 2, generator=rng, device="cpu")
        self._tables = strewn[: sum(counts)].to(self._device).split(counts)
        self._texts = texts
        dim = model.model.layers[0].self_attn.head_dim
        shape = (len(strewn), BLOCK_TOKENS, config.num_key_value_heads, dim)
        self.caches = [
            KeyValue(*torch.full((2, *shape), torch.nan, dtype=model.dtype, device=self._device))
            for _ in range(config.num_hidden_layers)
        ]

    def run(self, decoder: Any, chunks: Sequence[int], padding: int = 1) -> list[Tensor]:
        """Hidden states [tokens, H] of each text. Sequence i feeds `chunks[i]` tokens in each step."""
        states: list[list[Tensor]] = [[] for _ in self._texts]
        for rows in self._steps(chunks):
            ids = [self._texts[i][at] for i, places in rows for at in places]
            where = torch.cat([self._places(i, places) for i, places in rows]).to(self._device)
            flat = [at for _, places in rows for at in places]
            empty = [0] * padding
            out = decoder.hidden(
                torch.tensor(ids + empty, device=self._device),
                torch.tensor(flat + empty, device=self._device),
                torch.cat([where, torch.full((padding,), -1, device=self._device)]),
                self.caches,
                lambda layer, query, rows=rows: self._attend(layer, query, rows),
            )
            assert len(out) == len(ids) + padding
            sizes = [len(places) for _, places in rows]
            for (i, _), part in zip(rows, out[: len(ids)].split(sizes), strict=True):
                states[i].append(part)
        return [torch.cat(parts) for parts in states]

    def _steps(self, chunks: Sequence[int]) -> Iterator[list[tuple[int, range]]]:
        starts = [0] * len(self._texts)
        while True:
            rows = [
                (i, range(start, min(start + chunk, len(text))))
                for i, (start, chunk, text) in enumerate(
                    zip(starts, chunks, self._texts, strict=True)
                )
                if start < len(text)
            ]
            if not rows:
                return
            yield rows
            for i, places in rows:
                starts[i] = places.stop

    def _places(self, sequence: int, places: range) -> Tensor:
        at = torch.arange(places.start, places.stop, device=self._device)
        blocks = self._tables[sequence][at // BLOCK_TOKENS]
        return blocks * BLOCK_TOKENS + at % BLOCK_TOKENS

    def _attend(self, layer: int, query: Tensor, rows: Sequence[tuple[int, range]]) -> Tensor:
        out = torch.full_like(query, torch.nan)
        first = 0
        for sequence, places in rows:
            where = self._places(sequence, range(places.stop))
            key, value = (
                cache.flatten(0, 1)[where].transpose(0, 1) for cache in self.caches[layer]
            )
            seen = torch.ones(len(places), places.stop, dtype=torch.bool, device=self._device)
            last = first + len(places)
            out[first:last] = scaled_dot_product_attention(
                query[first:last].transpose(0, 1)[None],
                key.to(query.dtype)[None],
                value.to(query.dtype)[None],
                attn_mask=seen.tril(places.start),
                enable_gqa=True,
            )[0].transpose(0, 1)
            first = last
        return out
