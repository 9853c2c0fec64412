"""Matrices that one product can serve, as one matrix."""

from collections.abc import Sequence

import torch
from torch import Tensor

PARTNERS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that are fed the same. A loaded model has their weights side by side where it could be done (`weights`)."""
_ALIGNED_BYTES = 256
"""As an allocation of its own begins; kernels read the fastest from there."""


def joined(parts: Sequence[Tensor]) -> Tensor:
    """[rows of all parts, columns], or of biases [elements of all]: a view where the parts lie one after the other in
    memory, in that order, and a copy elsewhere."""
    first = parts[0]
    if not _is_in_line(parts):
        return torch.cat(list(parts))
    rows = sum(len(part) for part in parts)
    return first.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())


def _is_in_line(parts: Sequence[Tensor]) -> bool:
    first, place = parts[0], parts[0].data_ptr()
    for part in parts:
        is_like = part.dtype == first.dtype and part.shape[1:] == first.shape[1:]
        is_next = part.data_ptr() == place and part.is_contiguous()
        is_shared = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (is_like and is_next and is_shared):
            return False
        place += part.nbytes
    return True


def side_by_side(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Room on `device` for tensors of those shapes and types, so that `joined` need not copy where that is possible
    without putting one at an odd place."""
    first = parts[0]
    is_alike = all(
        part.dtype == first.dtype and part.shape[1:] == first.shape[1:] for part in parts
    )
    is_even = not any(part.nbytes % _ALIGNED_BYTES for part in parts[:-1])
    if len(parts) == 1 or not is_alike or not is_even:
        return [torch.empty_like(part, device=device) for part in parts]
    rows = [len(part) for part in parts]
    whole = torch.empty((sum(rows), *first.shape[1:]), dtype=first.dtype, device=device)
    return list(torch.split(whole, rows))
