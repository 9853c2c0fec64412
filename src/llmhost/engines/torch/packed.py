"""16-bit matrices in the packed form of FBGEMM, whose product widens them in registers, a few rows of input at a time.

On CPUs without 16-bit arithmetic it reads memory once, in 16 bits, and computes as fast as float32 does. FBGEMM knows
float16 alone; a bfloat16 matrix is scaled by a power of two into its range, where nearly every matrix is exact, and one
that is not is refused. Packing takes much longer than a product, so it is done beside serving (`Packing`).
"""

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

MOST_ELEMENTS = 2**23
"""Of one packed piece: half a second of packing, in which nobody can be stopped."""
TOP_EXPONENT = 15
"""The largest number of a scaled matrix is below two to this power; float16 ends at the next."""
TOLERANCE = 1e-4
"""Relative difference of a packed product from float32's; another order of the same sums is off by 1e-6."""


class CantPack(Exception):
    """The matrix would not be the same."""


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A matrix [outputs, inputs]; a product with it is float32's up to the order of sums."""

    pieces: tuple[Any, ...]
    """FBGEMM's, one below the other."""
    unscale: Tensor
    """[1], float32: what undoes the scale of the matrix, applied to the input."""
    dtype: torch.dtype

    @classmethod
    def of(cls, weight: Tensor, is_wanted: Callable[[], bool] = lambda: True) -> "PackedMatrix":
        """Raises CantPack where the numbers, or a product, would not be the same, and once it isn't wanted any more."""
        parts = torch.split(weight, max(MOST_ELEMENTS // weight.shape[1], 1))
        largest = float(torch.stack([part.abs().max() for part in parts]).max())
        if not 0 < largest < float("inf"):
            raise CantPack("zeros, or numbers that are not finite")
        scale = 2.0 ** (
            TOP_EXPONENT - int(torch.frexp(torch.tensor(largest, dtype=torch.float32)).exponent)
        )
        unscale = torch.tensor([1 / scale], dtype=torch.float32)
        pieces = []
        for part in parts:
            if not is_wanted():
                raise CantPack("nobody wants it any more")
            scaled = part.float() * scale
            if not torch.equal(scaled.half().float(), scaled):
                raise CantPack("numbers that float16 does not have beside the largest")
            piece = torch.ops.quantized.linear_prepack_fp16(scaled, None)
            cls((piece,), unscale, weight.dtype)._prove(part)  # one by one: it takes memory
            pieces.append(piece)
        return cls(tuple(pieces), unscale, weight.dtype)

    def product(self, rows: Tensor) -> Tensor:
        """`rows` [any, inputs] times the matrix's transpose, in float32."""
        scaled = rows * self.unscale
        outs = [torch.ops.quantized.linear_dynamic_fp16(scaled, piece) for piece in self.pieces]
        return outs[0] if len(outs) == 1 else torch.cat(outs, 1)

    def unpacked(self) -> Tensor:
        """The matrix as it was; slow."""
        parts = [torch.ops.quantized.linear_unpack_fp16(piece)[0] for piece in self.pieces]
        return (torch.cat(parts) * self.unscale).to(self.dtype)

    def _prove(self, weight: Tensor) -> None:
        asked = torch.linspace(-1, 1, 2 * weight.shape[1], dtype=torch.float32).view(2, -1)
        exact = asked @ weight.float().t()
        # Written so that NaN is refused too.
        if not (self.product(asked) - exact).norm() <= TOLERANCE * exact.norm() + TOLERANCE:
            raise CantPack("another product")


def can_pack() -> bool:
    """This build of torch has FBGEMM."""
    return torch.backends.quantized.engine in ("x86", "fbgemm")


def rows_at_once() -> int:
    """Of the input, that read the matrix together: as many as FBGEMM's loops have registers for."""
    return 14 if torch.cpu.get_capabilities().get("avx512_f") else 6


class Packs(Protocol):
    """A layer that can go over to a packed matrix at any time."""

    def pack(self, is_wanted: Callable[[], bool]) -> None: ...


class Packing:
    """Packs layers one after the other, in threads that give way to all others."""

    def __init__(self, layers: Iterable[Packs], threads: int) -> None:
        self._left = deque(layers)
        self.layers = len(self._left)
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._run, name="packing", daemon=True)
            for _ in range(threads if self._left else 0)
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(
            self.close
        )  # a thread that outlives the interpreter in the midst of C++ aborts it

    def wait(self) -> None:
        """Until all is done."""
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """No further piece is begun."""
        self._is_closed = True
        self.wait()
        atexit.unregister(self.close)

    def _run(self) -> None:
        with suppress(OSError, AttributeError):  # not on Linux: it shares alike
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        with suppress(IndexError), torch.inference_mode():  # nothing is left
            while not self._is_closed:
                self._left.popleft().pack(lambda: not self._is_closed)
