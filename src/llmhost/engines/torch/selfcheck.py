"""A freshly loaded model is compared with transformers' own attention before it may answer anybody.

First it is asked what its layers want of attention (`probe`), then its logits are compared on a few dozen tokens:
two sequences in mixed steps, and one that stands at the end of the longest text. It does not measure precision, it
finds architectures that do something which ours does not, whatever they call it.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmhost.core.errors import ModelUnavailable
from llmhost.core.sampling import Sampling
from llmhost.core.step import Row
from llmhost.engines.torch.fp8 import rows_as_they_are
from llmhost.engines.torch.kv import KvShape
from llmhost.engines.torch.layout import lay_out
from llmhost.engines.torch.probe import Unservable, attending_with, layer_scores
from llmhost.engines.torch.runner import TorchRunner

_LENGTHS = (24, 17)
_CHUNKS = ((12, 4), (1, 5), (3, 1))
"""How many tokens of either sequence the first steps feed."""
_ONE_BY_ONE = (1, 1)
_GREEDY = Sampling(temperature=0.0)
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Relative difference of logits; the wrong attention is off by about 1."""


def check_against_eager(runner: TorchRunner, model: Any, folder: Path, shape: KvShape) -> None:
    """Prepares `runner` for what its layers ask, and raises ModelUnavailable when it does not compute what `model`
    does with eager attention."""
    longest, vocabulary = runner.facts.max_sequence_length, runner.facts.vocab_size
    texts = [
        [(7919 * (place + 1) + 31 * number) % vocabulary for place in range(min(length, longest))]
        for number, length in enumerate(_LENGTHS)
    ]
    ahead = longest - len(texts[0])
    size = shape.block_tokens
    runner.set_kv_blocks(sum(-(-len(text) // size) for text in texts) + 1)
    try:
        with torch.inference_mode(), rows_as_they_are():
            runner.layers_ask = layer_scores(model, texts[0], shape, longest)
            runner.windows = [scores.window for scores in runner.layers_ask]
            mixed = _off(_in_mixed_steps(runner, texts), [_eager(model, text) for text in texts])
            far = _off(_in_mixed_steps(runner, texts[:1], ahead), [_eager(model, texts[0], ahead)])
    except Unservable as error:
        raise ModelUnavailable(_cant(model, folder, str(error))) from error
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelUnavailable(
            _cant(model, folder, f"its code fails in a first pass ({reason})")
        ) from error
    finally:
        runner.set_kv_blocks(0)
    for off, where in ((mixed, "over the paged KV cache"), (far, f"at position {ahead}")):
        # Written so that NaN is refused too.
        if not off <= _TOLERANCE[model.dtype]:
            raise ModelUnavailable(
                f"{type(model).__name__} in {folder} gives other logits {where} than transformers does"
                f" (relative difference {off:.2g}): it has a feature that the torch engine lacks."
            )


def _cant(model: Any, folder: Path, reason: str) -> str:
    return f"{type(model).__name__} in {folder} can't be run by the torch engine: {reason}."


def _off(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Relative difference of logits: the largest of all tokens, or of half precision the median."""
    exact, cached = torch.cat(list(theirs)), torch.cat(list(ours))
    distance = (cached.float() - exact.float()).norm(dim=-1) / exact.float().norm(dim=-1)
    return float(distance.max() if exact.dtype == torch.float32 else distance.median())


def _in_mixed_steps(
    runner: TorchRunner, texts: Sequence[Sequence[int]], ahead: int = 0
) -> list[Tensor]:
    """Logits [tokens, vocabulary] of each text, all fed together, in chunks that end at different places."""
    size = runner.facts.block_tokens
    tables, last = [], 0
    for text in texts:
        count = -(-len(text) // size)
        tables.append(list(range(last + count, last, -1)))
        last += count
    starts = [0] * len(texts)
    logits: list[list[Tensor]] = [[] for _ in texts]
    for counts in chain(_CHUNKS, repeat(_ONE_BY_ONE)):
        rows = [
            Row(i, text[start : start + count], start, table, _GREEDY, 0, wants_token=True)
            for i, (text, table, start, count) in enumerate(
                zip(texts, tables, starts, counts, strict=False)
            )
            if start < len(text)
        ]
        if not rows:
            return [torch.cat(parts) for parts in logits]
        layout = lay_out(rows, block_tokens=size, device=runner.device)
        every = torch.arange(layout.offsets[-1], device=runner.device)
        out = runner.forward(replace(layout, sampled=every), ahead=ahead)
        assert out is not None
        for place, i in enumerate(layout.order):
            row = rows[i]
            logits[row.seq_id].append(out[layout.offsets[place] : layout.offsets[place + 1]])
            starts[row.seq_id] += len(row.tokens)
    raise AssertionError  # the steps do not end


def _eager(model: Any, tokens: Sequence[int], ahead: int = 0) -> Tensor:
    """transformers' own logits [tokens, vocabulary]."""
    with attending_with(model, "eager"):
        ids = torch.tensor([list(tokens)], device=model.device)
        places = torch.arange(ahead, ahead + len(tokens), device=model.device)[None]
        logits: Tensor = model(input_ids=ids, position_ids=places, use_cache=False).logits[0]
    return logits
