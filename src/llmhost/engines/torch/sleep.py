"""Weights that wait in host memory while others use their device.

What moves is storage. Every tensor over it stays the object that it was, views in merged layers among them, and finds
its numbers again. Their addresses on the device are others then: whoever has noted some, as a captured graph has,
must note them anew.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from llmhost.engines.torch.file_reader import progress
from llmhost.engines.torch.memory import memory_errors
from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.engines")

CHUNK_BYTES = 2**28
"""Of page-locked memory: a power of two, to which torch would round anything else."""


class Stored(NamedTuple):
    """One storage of the device, and how large it was."""

    storage: torch.UntypedStorage
    size: int


class Sleeping:
    """What some tensors hold, kept in host memory. Their storages are empty until `wake`."""

    def __init__(self, tensors: Iterable[Tensor], *, chunk_bytes: int = CHUNK_BYTES) -> None:
        """`tensors` are all on one device. Nothing may run there that uses them."""
        began_s = time.perf_counter()
        self._stored = list(_storages(tensors))
        self.size_bytes = sum(size for _, size in self._stored)
        self._device = torch.device("cpu")
        self._chunk_bytes = chunk_bytes
        self._chunks: list[Tensor] = []
        if self._stored:
            self._device = self._stored[0].storage.device
        for chunk, kept, source in self._pieces():
            if chunk == len(self._chunks):
                self._chunks.append(self._new_chunk())
            self._chunks[chunk][kept].copy_(source, non_blocking=True)
        self._finish()
        for storage, _ in self._stored:
            storage.resize_(0)
        self._release()
        took_s = time.perf_counter() - began_s
        log_event(
            log, "weights.asleep", took_s=round(took_s, 3), **progress(self.size_bytes, took_s)
        )

    def wake(self) -> None:
        """Bring everything back. Raises OutOfMemory, and all of it sleeps on."""
        began_s = time.perf_counter()
        with memory_errors(self._device):
            try:
                for storage, size in self._stored:
                    storage.resize_(size)
            except BaseException:
                for storage, _ in self._stored:
                    storage.resize_(0)
                raise
        for chunk, kept, target in self._pieces():
            target.copy_(self._chunks[chunk][kept], non_blocking=True)
        self._finish()
        self._chunks.clear()
        took_s = time.perf_counter() - began_s
        if self._device.type == "cuda":
            _release_host()
        log_event(
            log, "weights.awake", took_s=round(took_s, 3), **progress(self.size_bytes, took_s)
        )

    def _pieces(self) -> Iterator[tuple[int, slice, Tensor]]:
        """Number of a chunk, bytes in it, and the same bytes of a storage: all of them, one after the other."""
        place = 0
        for storage, size in self._stored:
            flat = torch.empty(0, dtype=torch.uint8, device=storage.device)
            flat.set_(storage, 0, (size,), (1,))
            first = 0
            while first < size:
                chunk, start = divmod(place, self._chunk_bytes)
                count = min(size - first, self._chunk_bytes - start)
                yield chunk, slice(start, start + count), flat[first : first + count]
                first += count
                place += count

    def _new_chunk(self) -> Tensor:
        left = self.size_bytes - len(self._chunks) * self._chunk_bytes
        return torch.empty(
            min(left, self._chunk_bytes),
            dtype=torch.uint8,
            pin_memory=self._device.type == "cuda",
        )

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _release(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _release_host() -> None:
    """Give page-locked memory that is free back to the system, where this torch can."""
    release = getattr(torch.accelerator, "empty_host_cache", None)
    if release is not None:
        release()


def _storages(tensors: Iterable[Tensor]) -> Iterator[Stored]:
    """Each storage once, however many tensors look into it."""
    seen = set()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield Stored(storage, storage.nbytes())
