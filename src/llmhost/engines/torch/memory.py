"""What torch says when a device is full, as the one error that the scheduler can do something about."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from llmhost.core.errors import OutOfMemory


@contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Raises OutOfMemory instead, once everything that the failed computation held is free again."""
    is_full = False
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        is_full = True
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the CPU's allocator has no error of its own
            raise
        is_full = True
    if is_full:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(str(device))


def give_back() -> None:
    """Hand memory that was freed in small pieces to the system, where the C library is GNU's and would keep it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
