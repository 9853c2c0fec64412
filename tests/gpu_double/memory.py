"""Memory of the device and page-locked memory, both of which are memory of the host that says what it is.

Kept of CUDA: how many bytes are taken, and that there are no more than `CAPACITY_BYTES`. Not kept: pools, and memory
that is reserved and not used.
"""

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import torch
from tests.gpu_double.rules import UsedTooLate
from torch import Tensor

DEVICE = torch.device("cuda", 0)
CAPACITY_BYTES = 1 << 33
HOST_POISON = 0xA5
"""What a copy to the host has not filled yet."""
DEVICE_POISON = 0xFF
"""NaN, or -1: what a graph has not computed yet."""


class DeviceStorage(torch.UntypedStorage):
    """On the device. Its address changes when its size does."""

    taken_bytes = 0

    @property
    def device(self) -> torch.device:
        return DEVICE

    def cpu(self) -> "DeviceStorage":
        """For Triton's interpreter, which computes where the numbers are."""
        return self

    def resize_(self, size: int) -> Any:
        _take(size - self.nbytes())
        self.size[0] = size
        return super().resize_(size)


class PinnedStorage(torch.UntypedStorage):
    """Page-locked. `filling` counts copies that are on their way to it."""

    filling = 0


def _take(count: int) -> None:
    if DeviceStorage.taken_bytes + count > CAPACITY_BYTES:
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {count} bytes.")
    DeviceStorage.taken_bytes += count


def _give(size: list[int]) -> None:
    DeviceStorage.taken_bytes -= size[0]


def storage_of(tensor: Tensor) -> Any:
    return torch.Tensor.untyped_storage(tensor)


def onto_device(host: Tensor) -> DeviceStorage:
    """The memory of a plain tensor, as the device's from now on."""
    storage = storage_of(host)
    if type(storage) is not DeviceStorage:
        _take(storage.nbytes())
        storage.__class__ = DeviceStorage
        storage.size = [storage.nbytes()]
        storage.uses = {}  # see streams.use
        weakref.finalize(storage, _give, storage.size)
    return storage


def pinned(host: Tensor) -> Tensor:
    """A plain tensor whose memory nobody else has, page-locked from now on."""
    storage_of(host).__class__ = PinnedStorage
    return host


def is_pinned(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and type(storage_of(tensor)) is PinnedStorage


def over(storage: Any, offset: int, size: Any, stride: Any, dtype: torch.dtype) -> Tensor:
    """A plain tensor of that memory. torch itself would make the memory larger where it doesn't suffice."""
    if 0 not in size:
        last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
        if (last + 1) * dtype.itemsize > storage.nbytes():
            raise UsedTooLate(f"a tensor {list(size)} is used whose memory was given back")
    return torch.empty(0, dtype=dtype, device="cpu").set_(storage, offset, size, stride)


def plain(tensor: Tensor) -> Tensor:
    """The same numbers as a tensor of the host, made inside inference mode or outside, as `tensor` was."""
    with torch.inference_mode(tensor.is_inference()):
        return over(
            storage_of(tensor),
            tensor.storage_offset(),
            tensor.size(),
            tensor.stride(),
            tensor.dtype,
        )


def contents(storage: Any) -> Tensor:
    """All of its bytes, where they are."""
    return over(storage, 0, (storage.nbytes(),), (1,), torch.uint8)


CUDA, META = 1, 14
"""Numbers of kinds of devices, as torch has them."""
_get_device = ctypes.CFUNCTYPE(ctypes.c_int16, ctypes.c_void_p)(lambda guard: CUDA)
"""Which device is the current one: two bytes, the kind and the number, which is 0."""


def let_tensors_say_cuda() -> Callable[[], None]:
    """torch asks a guard for each kind of device, and may have none for CUDA. Returns what undoes it.

    Ours is that of meta tensors, which does nothing, but knows what the current device is.
    """
    library = ctypes.CDLL(f"{torch.__path__[0]}/lib/libc10.so")
    guards = (ctypes.c_void_p * 20).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    methods = ctypes.cast(guards[META], ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p)))[0]
    ours = (ctypes.c_void_p * 40)(
        *methods[:40]
    )  # the table of its methods, and what lies behind it
    ours[2] = ctypes.cast(_get_device, ctypes.c_void_p).value
    guard, before = ctypes.c_void_p(ctypes.addressof(ours)), guards[CUDA]
    guards[CUDA] = ctypes.addressof(guard)

    def undo() -> None:
        guards[CUDA] = before
        assert guard and ours  # they lived until now

    return undo
