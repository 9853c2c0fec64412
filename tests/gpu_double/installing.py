"""Putting the double in torch's and Triton's places while a block lasts, in all threads that begin meanwhile."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from tests.gpu_double import graphs, memory, streams
from tests.gpu_double.memory import plain, storage_of
from tests.gpu_double.rules import RuleBroken
from tests.gpu_double.streams import here, on_stream, use
from tests.gpu_double.tensors import DeviceTensor, Dispatch
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves, tree_map_only
from triton.runtime import interpreter

PROPERTIES = SimpleNamespace(
    name="double", major=9, minor=0, multi_processor_count=1, total_memory=memory.CAPACITY_BYTES
)
SHARED_BYTES = 232_448
INTERPRETED = {"WIDENS": False}
"""What kernels are told so that they go without inline assembly, which can't be interpreted."""

_interpreter = threading.Lock()
"""It has one grid for all threads."""


@contextmanager
def installed() -> Iterator[None]:
    """There is one GPU, until the block ends. Then whatever rule was broken in it is raised, unless it was expected."""
    with pytest.MonkeyPatch.context() as patch, Dispatch(), _lifted():
        for name, stand_in in _cuda().items():
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(torch, "Generator", _Generator)
        _device_constructors()  # which remembers what it finds
        patch.setattr(torch, "tensor", _tensor_maker(torch.tensor))
        patch.setattr(torch.accelerator, "empty_host_cache", _nothing, raising=False)
        _in_triton(patch)
        _in_threads(patch)
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter changes its class
        forget_guard = memory.let_tensors_say_cuda()
        RuleBroken.found.clear()
        _forget_what_libraries_saw()
        try:
            yield
            streams.wait_for_all()
        finally:
            forget_guard()
            torch.__future__.set_swap_module_params_on_conversion(swaps)
            _forget_what_libraries_saw()
    if RuleBroken.found:
        raise RuleBroken.found[0]


@contextmanager
def _lifted() -> Iterator[None]:
    """In this thread new tensors are made on the host and brought to the device where that can be seen."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def _cuda() -> dict[str, Any]:
    return {
        "CUDAGraph": graphs.CUDAGraph,
        "Event": streams.Event,
        "Stream": streams.Stream,
        "_lazy_init": _nothing,
        "current_device": lambda: 0,
        "current_stream": lambda device=None: here.stream,
        "default_stream": lambda device=None: streams.DEFAULT,
        "device": _device,
        "device_count": lambda: 1,
        "empty_cache": _nothing,
        "get_device_capability": lambda device=None: (PROPERTIES.major, PROPERTIES.minor),
        "get_device_name": lambda device=None: PROPERTIES.name,
        "get_device_properties": lambda device=None: PROPERTIES,
        "graph_pool_handle": graphs.pool_handle,
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: here.graph is not None,
        "mem_get_info": lambda device=None: (_free_bytes(), memory.CAPACITY_BYTES),
        "memory_allocated": lambda device=None: memory.DeviceStorage.taken_bytes,
        "set_device": _nothing,
        "stream": on_stream,
        "synchronize": lambda device=None: streams.wait_for_all(),
    }


def _nothing(*_: object) -> None: ...


def _free_bytes() -> int:
    return memory.CAPACITY_BYTES - memory.DeviceStorage.taken_bytes


@contextmanager
def _device(device: object) -> Iterator[None]:
    yield


class _Generator:
    """Numbers of the device are the host's."""

    def __new__(cls, device: object = None) -> Any:
        return torch._C.Generator()


def _tensor_maker(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def tensor(data: Any, *, pin_memory: bool = False, **options: Any) -> Tensor:
        """torch's own makes page-locked memory out of everybody's sight."""
        made = make(data, **options)
        return made.pin_memory() if pin_memory else made

    return tensor


def _in_triton(patch: pytest.MonkeyPatch) -> None:
    interpret = interpreter.GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        with _interpreter:
            interpret(self, *args, **kwargs)

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        there = [storage_of(one) for one in tensors if isinstance(one, DeviceTensor)]
        if not there:
            launch(self, *args, **kwargs)
            return
        if any(not isinstance(one, DeviceTensor) and not memory.is_pinned(one) for one in tensors):
            raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        kwargs |= {name: value for name, value in INTERPRETED.items() if name in kwargs}
        if here.graph is not None:
            here.graph.will_write(there)
            here.graph.record(lambda *a, **k: launch(self, *a, **k), (args, kwargs), [])
        else:
            use((), there)
        args, kwargs = tree_map_only(DeviceTensor, plain, (args, kwargs))
        launch(self, *args, **kwargs)

    properties = {"max_shared_mem": SHARED_BYTES, "multiprocessor_count": 1}
    utilities = SimpleNamespace(get_device_properties=lambda index: properties)
    patch.setattr(interpreter.GridExecutor, "__call__", launched)
    patch.setattr(triton.runtime.driver, "_active", SimpleNamespace(utils=utilities))


def _in_threads(patch: pytest.MonkeyPatch) -> None:
    begin = threading.Thread._bootstrap_inner

    def with_calls_seen(self: threading.Thread) -> None:
        with Dispatch(), _lifted():
            begin(self)

    patch.setattr(threading.Thread, "_bootstrap_inner", with_calls_seen)


def _forget_what_libraries_saw() -> None:
    """transformers looks for a GPU once and for all."""
    from transformers.utils import import_utils

    for one in vars(import_utils).values():
        if hasattr(one, "cache_clear"):
            one.cache_clear()
