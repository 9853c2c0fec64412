"""What must be known of torch's calls: which of them wait for a GPU, which give views, and which write where."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

WAITING = frozenset(
    {
        "_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "argwhere", "masked_select", "bincount",
        "_unique", "_unique2", "unique_dim", "unique_consecutive", "allclose",
    }
)  # fmt: skip
"""Calls whose result, or its size, the host has to know."""
INDEXING = frozenset({"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"})


def waits(func: Any, *args: Any, output_size: int | None = None, **_: Any) -> bool:
    if func._opname == "repeat_interleave":
        return func._overloadname != "self_int" and output_size is None
    if func._opname == "one_hot":
        return len(args) < 2  # the number of classes
    return func._opname in WAITING


@cache
def is_view(func: Any) -> bool:
    marks = [one.alias_info for one in func._schema.arguments]
    return any(mark is not None and not mark.is_write for mark in marks)


@cache
def written_arguments(func: Any) -> list[tuple[int, str]]:
    """Places and names of the arguments that a call writes to."""
    return [
        (place, one.name)
        for place, one in enumerate(func._schema.arguments)
        if one.alias_info is not None and one.alias_info.is_write
    ]


def _histogram(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.histc(x.float(), *args, **kwargs).to(x.dtype)


def _scaled_product(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> Tensor:
    assert scale_result is None
    product = (a.float() @ b.float()) * scale_a * scale_b
    return (product if bias is None else product + bias).to(out_dtype or a.dtype)


ON_THE_CPU: dict[str, Callable[..., Any]] = {"_scaled_mm": _scaled_product, "histc": _histogram}
"""What torch can't do there, or not in all versions, with the numbers that it can do it with on a GPU."""
