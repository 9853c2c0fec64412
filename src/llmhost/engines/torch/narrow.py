"""A loaded model's linear layers with weights of fewer bits, made layer by layer on the device.

Layers that are fed the same become parts of one matrix, which the fused decoder multiplies at once (`whole_of`); each
also stays a module of its own, so that transformers' code runs as before. Embeddings, norms and biases stay as they
are, and so does the head: noise in its weights goes straight into the logits.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from llmhost.engines.torch.fp8 import Fp8Projection
from llmhost.engines.torch.int4 import ZERO, Int4Projection, Quantised
from llmhost.engines.torch.projections import Projection

GROUPS = (
    ("self_attn", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", ("o_proj",)),
    ("mlp", ("gate_proj", "up_proj")),
    ("mlp", ("down_proj",)),
)
"""Of each layer: what is fed the same."""


WARM_ROWS = (1, 16, 32, 64, 65)
"""The kernels differ by these."""


class NarrowLinear(nn.Module):
    """Stands where a linear layer stood: some rows of a narrow matrix."""

    def __init__(self, whole: Fp8Projection | Int4Projection, first: int, last: int) -> None:
        super().__init__()
        self.whole: Projection = whole
        self.rows = range(first, last)
        self.in_features, self.out_features = whole.columns, last - first
        self.whole_rows = len(whole.weight)
        self._part: Projection = whole.part(first, last)
        for number, tensor in enumerate(self._part.tensors):  # for whoever counts a model's bytes
            self.register_buffer(f"part_{number}", tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self._part(x.reshape(-1, x.shape[-1]))
        return out.view(*x.shape[:-1], -1)


_KNOWN: "WeakKeyDictionary[nn.Module, Quantised]" = WeakKeyDictionary()
"""Layers of checkpoints that were quantised."""

KINDS: dict[str, type[Fp8Projection] | type[Int4Projection]] = {
    "fp8": Fp8Projection,
    "int4": Int4Projection,
}
"""By the value of `options.weights`."""


def remember(model: Any, quantised: Mapping[str, Quantised]) -> None:
    """Of layers, by their names, whose weights have been 4-bit numbers before: made narrow, they stay the same numbers.
    Those that the model has put together from several are forgotten."""
    layers = dict(model.named_modules())
    for name, of_layer in quantised.items():
        if isinstance(layer := layers.get(name), nn.Linear):
            _KNOWN[layer] = of_layer


def narrow_weights(model: Any, kind: str, device: torch.device) -> None:
    """Replace the linear layers of `model`, whose layers are built like Llama's, by narrow ones on `device`.

    The rest of the model stays where it is. No more than one matrix is on the device as it was loaded.
    """
    with torch.inference_mode(mode=False), torch.no_grad():
        for parent, names in _groups(model):
            linears = [getattr(parent, name) for name in names]
            weight = _stacked([one.weight for one in linears], device)
            bias = None
            if linears[0].bias is not None:
                bias = _stacked([one.bias for one in linears], device)
            known = _known(linears, device) if kind == "int4" else None
            whole = (
                KINDS[kind].of(weight, bias)
                if known is None
                else Int4Projection.of(weight, bias, known)
            )
            first = 0
            for name, linear in zip(names, linears, strict=True):
                last = first + linear.out_features
                setattr(parent, name, NarrowLinear(whole, first, last))
                first = last
    if device.type == "cuda":
        torch.cuda.empty_cache()  # else the room in which matrices were stacked stays reserved


def compile_products(model: Any) -> None:
    """Have the compiler make what `model` needs for any number of rows, so that no request waits for it."""
    wholes = {
        (one.in_features, tuple(tensor.dtype for tensor in one.whole.tensors)): one.whole
        for one in model.modules()
        if isinstance(one, NarrowLinear)
    }
    with torch.inference_mode():
        for (columns, _), whole in wholes.items():
            for rows in WARM_ROWS:
                whole(torch.zeros(rows, columns, dtype=model.dtype, device=model.device))


def whole_of(modules: Sequence[object]) -> Projection | None:
    """The narrow matrix of which `modules` are all the parts, in order; None if they are none."""
    narrow = [one for one in modules if isinstance(one, NarrowLinear)]
    if len(narrow) < len(modules) or any(one.whole is not narrow[0].whole for one in narrow):
        return None
    rows = [row for one in narrow for row in (one.rows.start, one.rows.stop)]
    is_all = rows[0] == 0 and rows[-1] == narrow[0].whole_rows and rows[1:-1:2] == rows[2::2]
    return narrow[0].whole if is_all else None


def refusal(model: Any, kind: str) -> str | None:
    """Why the weights of `model` can't be narrow ones; None if they can."""
    rows, columns = KINDS[kind].steps
    try:
        groups = [[getattr(parent, name) for name in names] for parent, names in _groups(model)]
    except AttributeError:
        return "its layers are not built like Llama's"
    for group in groups:
        for linear in group:
            if not isinstance(linear, nn.Linear) or (linear.bias is None) != (
                group[0].bias is None
            ):
                return f"it has a {type(linear).__name__} that is not like those beside it"
            if linear.out_features % rows or linear.in_features % columns:
                return (
                    f"it has a matrix of {linear.out_features} x {linear.in_features} numbers, and {kind}"
                    f" wants whole multiples of {rows} x {columns}"
                )
    return None


def _groups(model: Any) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    for layer in model.model.layers:
        for owner, names in GROUPS:
            yield getattr(layer, owner), names


def _known(linears: Sequence[nn.Module], device: torch.device) -> Quantised | None:
    """What is known of all of them together; None where it isn't known of each."""
    known = [_KNOWN[one] for one in linears if one in _KNOWN]
    if len(known) < len(linears):
        return None
    scales = torch.cat([one.scales for one in known]).to(device)
    if all(one.zeros is None for one in known):
        return Quantised(scales, None)
    zeros = [
        torch.full_like(one.scales, ZERO, dtype=torch.uint8) if one.zeros is None else one.zeros
        for one in known
    ]
    return Quantised(scales, torch.cat(zeros).to(device))


def _stacked(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    return torch.cat([part.data.to(device) for part in parts])
