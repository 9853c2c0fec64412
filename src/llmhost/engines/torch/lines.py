"""What a sampler looks up in lines of numbers [lines, vocabulary]: the largest, the ranks, the sorted top.

On the CPU by numpy, which has vector instructions for these where torch has none: at 64 lines of 32,000 numbers a
largest number takes 0.4 ms instead of 3.5, and sorting all of them 10 ms instead of 166.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[tuple[int, int], np.dtype[np.float32]]
Flags = np.ndarray[tuple[int, int], np.dtype[np.bool_]]

NUMPYS = "cpu"
"""The kind of device whose memory numpy reads."""
SORTED_WHOLE = 4096
"""Lines up to so long are sorted outright; of longer ones the top is parted off first."""


def largest(numbers: Tensor) -> tuple[Tensor, list[int]]:
    """Of each line the largest number, and the first place that has it. NaN counts as larger than all."""
    if numbers.device.type != NUMPYS:
        best, places = numbers.max(dim=-1)
        return best, places.tolist()
    found = torch.from_numpy(_array(numbers).argmax(axis=-1))
    return numbers.gather(1, found[:, None])[:, 0], found.tolist()


def top(numbers: Tensor, count: int) -> Tensor:
    """The `count` largest numbers of each line, the largest first."""
    if numbers.device.type != NUMPYS:
        return numbers.topk(count, dim=-1).values
    array = _array(numbers)
    length = array.shape[1]
    if count < length and length > SORTED_WHOLE:
        array = np.partition(array, length - count, axis=-1)[:, length - count :]
    ascending = np.sort(array, axis=-1)[:, ::-1]
    return torch.from_numpy(ascending[:, :count].copy())


def ranks(numbers: Tensor, places: Sequence[int]) -> list[int]:
    """What number of each line's largest stands at its place; of equals the earlier is the larger. 1 is the largest."""
    if numbers.device.type != NUMPYS:
        at = torch.tensor(places, device=numbers.device)[:, None]
        own = numbers.gather(1, at)
        is_earlier = torch.arange(numbers.shape[1], device=numbers.device) < at
        is_larger = (numbers > own) | ((numbers == own) & is_earlier)
        return (is_larger.sum(-1) + 1).tolist()
    return [
        1 + int(np.count_nonzero(line[:at] >= line[at]) + np.count_nonzero(line[at:] > line[at]))
        for line, at in zip(_array(numbers), places, strict=True)
    ]


def at_least(numbers: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Lines and places of all numbers that are not below their line's edge [lines, 1], in order."""
    if numbers.device.type != NUMPYS:
        lines, places = (numbers >= edges).nonzero(as_tuple=True)
        return lines, places
    found = torch.from_numpy(np.flatnonzero(_array(numbers) >= edges.numpy()))
    return found // numbers.shape[1], found % numbers.shape[1]


def zero_below(numbers: Tensor, edges: Tensor) -> None:
    """Set float32 numbers to zero that are below their line's edge [lines, 1]."""
    if numbers.device.type != NUMPYS:
        numbers.masked_fill_(numbers < edges, 0.0)
    else:
        array = numbers.numpy()
        np.copyto(array, 0.0, where=array < edges.numpy())


def bar(numbers: Tensor, lines: Sequence[int], is_barred: Flags) -> None:
    """Set float32 numbers of some lines to negative infinity."""
    if numbers.device.type != NUMPYS:
        barred = torch.from_numpy(is_barred).to(numbers.device)
        some = torch.tensor(lines, device=numbers.device)
        numbers[some] = numbers[some].masked_fill(barred, float("-inf"))
        return
    array = numbers.numpy()
    for line, flags in zip(lines, is_barred, strict=True):
        np.copyto(array[line], -np.inf, where=flags)


def bar_bits(numbers: Tensor, lines: Tensor, allowed: Tensor) -> None:
    """Set float32 numbers of some lines to negative infinity whose bit in `allowed` [lines, words] is not set.

    int32 words, the first place in the lowest bit. Nothing is waited for.
    """
    shifts = torch.arange(32, dtype=torch.int32, device=numbers.device)
    bits = (allowed[:, :, None] >> shifts & 1).view(len(allowed), -1)[:, : numbers.shape[1]]
    numbers[lines] = numbers[lines].masked_fill(bits == 0, float("-inf"))


def _array(numbers: Tensor) -> Array:
    return numbers.float().numpy()
