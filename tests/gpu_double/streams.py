"""Streams, events and copies between host and device.

Kept of CUDA: what is put in order and what is not. Everything runs at once, yet each stream counts what it was given,
and has a clock of how far it has waited for each other stream; the host has one, too. Work that uses memory must come,
by these clocks, after what wrote it, and work that writes must come after what still reads. A copy that nobody waits
for ends when the host has waited for it: until then a target on the host is poison, and a source must stay as it is.
"""

import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from tests.gpu_double.memory import DEVICE, HOST_POISON, storage_of
from tests.gpu_double.rules import (
    ChangedTooEarly,
    NotCapturable,
    OutOfOrder,
    UsedTooEarly,
    refuse_to_wait,
)
from torch import Tensor

Clock = dict[int, int]
"""Of streams, by their numbers: how much of their work is known to come before."""
_numbers = count()
_lock = threading.RLock()
_host: Clock = {}
_copies: "list[_Copy]" = []
_all: "weakref.WeakSet[Stream]" = weakref.WeakSet()


class Here(threading.local):
    """What a thread has set."""

    def __init__(self) -> None:
        self.stream: Stream = DEFAULT
        self.graph: Any = None
        """Of `graphs`: what is being recorded."""


class Stream:
    """Stands for torch.cuda.Stream."""

    def __init__(self, device: object = None, priority: int = 0, **_: object) -> None:
        self.device = DEVICE
        self.cuda_stream = next(_numbers)
        self.clock: Clock = {self.cuda_stream: 0}
        _all.add(self)

    def next(self) -> int:
        """The number of what it is given now."""
        self.clock[self.cuda_stream] += 1
        return self.clock[self.cuda_stream]

    def wait_stream(self, other: "Stream") -> None:
        refuse_in_graph("wait_stream")
        _merge(self.clock, other.clock)

    def wait_event(self, event: "Event") -> None:
        refuse_in_graph("wait_event")
        _merge(self.clock, event.clock)

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        wait("Stream.synchronize", self.clock)

    def query(self) -> bool:
        return True


class Event:
    """Stands for torch.cuda.Event."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, **_: object) -> None:
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        refuse_in_graph("Event.record")
        self.clock = dict((stream or here.stream).clock)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or here.stream).wait_event(self)

    def synchronize(self) -> None:
        wait("Event.synchronize", self.clock)

    def query(self) -> bool:
        return True


DEFAULT = Stream()
here = Here()


@contextmanager
def on_stream(stream: Stream | None) -> Iterator[None]:
    """Stands for torch.cuda.stream."""
    before, here.stream = here.stream, stream or here.stream
    try:
        yield
    finally:
        here.stream = before


def _merge(clock: Clock, other: Clock) -> None:
    with _lock:
        for number, at in list(other.items()):
            clock[number] = max(clock.get(number, 0), at)


def refuse_in_graph(what: str) -> None:
    if here.graph is not None:
        here.graph.is_broken = True
        raise NotCapturable(f"{what} while a graph is recorded")


def wait(what: str, clock: Clock | None = None) -> None:
    """The host waits: for one clock's work, or for all that this thread's stream was given."""
    refuse_in_graph(what)
    refuse_to_wait(what)
    _merge(_host, here.stream.clock if clock is None else clock)
    with _lock:
        done = [one for one in _copies if one.at <= _host.get(one.stream, 0)]
        _copies[:] = [one for one in _copies if one not in done]
    for one in done:
        one.end()


def wait_for_all() -> None:
    """torch.cuda.synchronize."""
    everything: Clock = {}
    for one in list(_all):
        _merge(everything, one.clock)
    wait("torch.cuda.synchronize", everything)


def use(read: Iterable[Any], written: Iterable[Any]) -> None:
    """Storages that the next work of this thread's stream reads and writes."""
    stream = here.stream
    with _lock:
        at = stream.next()
        for storages, writes in ((read, False), (written, True)):
            for storage in storages:
                for (number, wrote), then in storage.uses.items():
                    if number == stream.cuda_stream or not (writes or wrote):
                        continue
                    if then > max(stream.clock.get(number, 0), _host.get(number, 0)):
                        raise OutOfOrder(
                            f"stream {stream.cuda_stream} {'writes' if writes else 'reads'} what stream"
                            f" {number} {'writes' if wrote else 'reads'}, and does not wait for it"
                        )
                if writes:
                    storage.uses.clear()
                storage.uses[stream.cuda_stream, writes] = at


class _Copy:
    """One that nobody has waited for."""

    def __init__(self, host: Tensor, numbers: Tensor, *, is_to_host: bool) -> None:
        self.host, self.numbers, self.is_to_host = host, numbers, is_to_host
        self.stream, self.at = here.stream.cuda_stream, here.stream.clock[here.stream.cuda_stream]
        with _lock:
            _copies.append(self)

    def end(self) -> None:
        with torch.inference_mode(), torch._C._DisableTorchDispatch():
            self._end()

    def _end(self) -> None:
        if self.is_to_host:
            storage_of(self.host).filling -= 1
            self.host.copy_(self.numbers)
        elif not _bytes(self.host).equal(_bytes(self.numbers)):
            raise ChangedTooEarly(
                f"a page-locked tensor {list(self.host.shape)} was changed before it had been copied"
            )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


def copy_later(target: Tensor, source: Tensor, *, is_to_host: bool) -> None:
    """Between plain tensors, one of which is page-locked: nobody has waited for it yet."""
    if is_to_host:
        for one in _under_way(target):  # they come before it, in this order
            one.end()
            with _lock:
                _copies.remove(one)
        storage_of(target).filling += 1
        _Copy(target, source.clone(), is_to_host=True)
        _bytes(target).fill_(HOST_POISON)
    else:
        filling = [one for one in _under_way(source) if one.is_to_host]
        seen = filling[-1].numbers if filling else source
        target.copy_(seen)
        _Copy(source, seen.clone(), is_to_host=False)


def _under_way(host: Tensor) -> list[_Copy]:
    """Copies that this thread's stream does before its next work, to or from that very memory."""
    place = (host.data_ptr(), host.nbytes)
    with _lock:
        return [
            one
            for one in _copies
            if one.stream == here.stream.cuda_stream
            and (one.host.data_ptr(), one.host.nbytes) == place
        ]


def refuse_to_copy_if_filling(host: Tensor) -> None:
    """As below, for a copy to the device, which comes after those that this thread's stream was given before."""
    first, end = host.data_ptr(), host.data_ptr() + host.nbytes
    mine = _under_way(host)
    with _lock:
        others = [
            one
            for one in _copies
            if one.is_to_host
            and one not in mine
            and first < one.host.data_ptr() + one.host.nbytes
            and one.host.data_ptr() < end
        ]
    if others:
        raise UsedTooEarly("a tensor of the host is copied while another stream still fills it")


def refuse_if_filling(host: Tensor) -> None:
    if host.layout is torch.strided and getattr(storage_of(host), "filling", 0):
        raise UsedTooEarly("a tensor of the host is used while a copy still fills it")
