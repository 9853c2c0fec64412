"""Linear layers that read the same input, as one matrix in memory.

The layers stay what they are: their parameters become views of that matrix, so that whoever calls them, changes them
or hooks into them sees no difference. At no time is more than one merged matrix in memory twice.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmhost.engines.torch.cpu_linear import WideningLinear


def can_merge(linears: Sequence[object]) -> bool:
    """They are plain linear layers of one type on one device, over equal inputs, all with a bias or all without."""
    if not linears or not all(type(one) in (nn.Linear, WideningLinear) for one in linears):
        return False
    plain = [one for one in linears if isinstance(one, nn.Linear)]
    kinds = {
        (one.in_features, one.weight.dtype, one.weight.device, one.bias is None) for one in plain
    }
    return len(kinds) == 1 and all(one.weight.is_contiguous() for one in plain)


def merge(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """The weights [sum of outputs, inputs] and biases of `linears`, which `can_merge`, below one another.

    Where they lie so already, as a loaded model's and those that were merged before do, nothing is copied.
    """
    assert can_merge(linears)
    with torch.inference_mode(mode=False), torch.no_grad():
        weight = _in_one_piece([one.weight for one in linears])
        has_bias = linears[0].bias is not None
        bias = _in_one_piece([one.bias for one in linears]) if has_bias else None
    return weight, bias


def _in_one_piece(parts: Sequence[Tensor]) -> Tensor:
    if _follow_each_other(parts):
        first = parts[0].data
        shape = (sum(len(part) for part in parts), *first.shape[1:])
        return first.as_strided(shape, first.stride(), first.storage_offset())
    whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, torch.split(whole, [len(part) for part in parts]), strict=True):
        part.data = view
    if whole.device.type == "cuda":
        torch.cuda.empty_cache()  # else the old ones, too small for the next whole, stay reserved
    return whole


def _follow_each_other(parts: Sequence[Tensor]) -> bool:
    """They are already parts of one tensor, in this order, with nothing in between."""
    storage, place = parts[0].untyped_storage().data_ptr(), parts[0].storage_offset()
    for part in parts:
        if part.untyped_storage().data_ptr() != storage or part.storage_offset() != place:
            return False
        place += part.numel()
    return True
