"""Linear layers of float32 models on the CPU whose rows don't depend on how many are multiplied together.

torch's own product takes another routine for one row, for a few, and for many, and each adds up in another order. The
products here take each row's sums in one order. Weights that came from 16 bits are kept in 16 (`packed`) where FBGEMM
has one order for all, which it has with AVX-512 alone, and others in blocks of oneDNN; each is tried on this machine
before it is used.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmhost.engines.torch.cpu_linear import holders_of, stand_in
from llmhost.engines.torch.packed import CantPack, PackedMatrix, can_pack

TRIED_ROWS = (1, 2, 3, 5, 8, 11, 15, 16, 17, 31, 33, 64, 200)
"""Beside each other they show every change of routine that is known of torch's products."""
BLOCKED_ROWS = (1, 2, 4, 8, 16, 64)
"""Numbers of rows that oneDNN is given: others are cut into these, and the last piece is padded. It makes code for each
number, and keeps some 0.6 MB for each of a matrix's shape. Which of them give the same bits is tried: since torch 2.12
all; before, without AVX-512, those that leave no tile of six with one to three rows."""
MOST_PADDING = 4
"""The least of them may be so many: with torch 2.11 a row alone takes up to three times as long as it could."""

Product = Callable[[Tensor], Tensor]
"""Of rows [any, inputs] with a matrix: [as many, outputs]."""
Sizes = tuple[int, ...]
Tried = dict[tuple[object, ...], Sizes]
"""By the kind and shape of a matrix: numbers of rows whose products are steady, or nothing."""


class Unsteady(Exception):
    """Why a layer has no product whose rows are independent."""


@dataclass(frozen=True, slots=True)
class BlockedMatrix:
    """A float32 matrix [outputs, inputs] as oneDNN wants it."""

    blocks: Tensor
    sizes: Sizes = BLOCKED_ROWS
    """Numbers of rows that are given to oneDNN."""

    @classmethod
    def of(cls, weight: Tensor) -> "BlockedMatrix":
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight))

    def product(self, rows: Tensor) -> Tensor:
        """`rows` [any, inputs] times the matrix's transpose."""
        count = len(rows)
        if not count:
            return rows.new_empty(0, self.blocks.shape[0])
        outs = [self._piece(rows[first:end]) for first, end in pieces(count, self.sizes)]
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _piece(self, rows: Tensor) -> Tensor:
        """Of no more rows than the last of the sizes."""
        count = len(rows)
        fed = next(size for size in self.sizes if size >= count)
        if fed > count:
            rows = nn.functional.pad(rows, (0, 0, 0, fed - count))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.blocks, None, "none", [], "")
        return out[:count]

    def unpacked(self) -> Tensor:
        """The matrix as it was; slow."""
        return self.blocks.to_dense()


class SteadyLinear(nn.Linear):
    """An `nn.Linear` whose rows are the same numbers whatever other rows there are."""

    matrix: "PackedMatrix | BlockedMatrix"

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weights, which have to be unpacked for it unless others have them too."""
        kept = self._parameters["weight"]
        assert kept is not None
        is_whole = kept.untyped_storage().nbytes() >= kept.nbytes
        return kept if is_whole else self.matrix.unpacked()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as nn.Linear calls it
        out = self.matrix.product(input.reshape(-1, self.in_features))
        if self.bias is not None:
            out += self.bias
        return out.view(*input.shape[:-1], self.out_features)


def pieces(count: int, sizes: Sizes = BLOCKED_ROWS) -> Iterator[tuple[int, int]]:
    """Where so many rows are cut: as often as the largest pieces fit, then the next."""
    first = 0
    for size in reversed(sizes[-2:]):
        while count - first >= size:
            yield first, first + size
            first += size
    if first < count:
        yield first, count


def make_linears_steady(model: nn.Module) -> int:
    """Give the float32 linear layers of `model`, all on the CPU, products whose rows don't depend on each other; how
    many have one now. Raises Unsteady, and changes nothing, where one can't."""
    linears = [one for one in model.modules() if type(one) is nn.Linear]
    tried: Tried = {}
    matrices = [_matrix(one.weight.detach(), tried) for one in linears]
    holders = holders_of(model)
    for linear, matrix in zip(linears, matrices, strict=True):
        kept = linear.weight
        linear.__class__ = SteadyLinear
        linear.matrix = matrix  # type: ignore[assignment]
        if holders[kept.data_ptr()] == 1:
            linear._parameters["weight"] = stand_in(kept)
    return len(linears)


def _matrix(weight: Tensor, tried: Tried) -> PackedMatrix | BlockedMatrix:
    if (packed := _packed(weight, tried)) is not None:
        return packed
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        raise Unsteady("neither FBGEMM nor oneDNN has a steady product")
    blocks = BlockedMatrix.of(weight).blocks
    key = (BlockedMatrix, *weight.shape)
    if key not in tried:
        tried[key] = steady_sizes(blocks)
    if not tried[key]:
        raise Unsteady(f"rows of a matrix {list(weight.shape)} change with their number")
    return BlockedMatrix(blocks, tried[key])


def steady_sizes(blocks: Tensor) -> Sizes:
    """How many rows oneDNN may be given so that each is the same bits; nothing where that doesn't hold."""
    rows = _rows(blocks.shape[1])[: BLOCKED_ROWS[-1]]
    whole = BlockedMatrix(blocks, BLOCKED_ROWS[-1:]).product(rows)
    sizes = tuple(
        size
        for size in BLOCKED_ROWS
        if torch.equal(BlockedMatrix(blocks, (size,)).product(rows[:size]), whole[:size])
    )
    if sizes[0] <= MOST_PADDING and is_steady(
        BlockedMatrix(blocks, sizes).product, blocks.shape[1]
    ):
        return sizes
    return ()


def _packed(weight: Tensor, tried: Tried) -> PackedMatrix | None:
    """None where FBGEMM can't have the matrix, or its rows are not steady. Packing takes a while: where they were not,
    it is not tried with another matrix of that shape."""
    key = (PackedMatrix, *weight.shape)
    if not can_pack() or tried.get(key) == ():
        return None
    with suppress(CantPack):
        packed = PackedMatrix.of(weight)
        if key not in tried:
            tried[key] = TRIED_ROWS if is_steady(packed.product, weight.shape[1]) else ()
        return packed if tried[key] else None
    return None


def is_steady(product: Product, inputs: int) -> bool:
    """Whether a row's numbers are the same beside any others, as far as it was tried."""
    rows = _rows(inputs)
    whole = product(rows)
    return all(torch.equal(product(rows[:count]), whole[:count]) for count in TRIED_ROWS)


def _rows(inputs: int) -> Tensor:
    numbers = torch.Generator().manual_seed(1)
    return torch.rand(TRIED_ROWS[-1], inputs, generator=numbers, device="cpu") - 0.5
