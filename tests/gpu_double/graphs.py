"""CUDA graphs: what was given to a stream, with the very memory that it was given, to be done again.

Kept of CUDA: what is recorded leaves no numbers behind until it is replayed; numbers of Python stay what they were;
memory that was made meanwhile belongs to the graph, all other is used where it was, and must be there still. Whatever
would wait, or reads memory of the host that can be given back, is refused. Not kept: memory that graphs of one pool
share, since nobody gives it away who still needs it; copies to the host, and work of several streams in one graph.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, NamedTuple

import torch
from tests.gpu_double.memory import DEVICE_POISON, DeviceStorage, contents, over, storage_of
from tests.gpu_double.rules import GraphOutdated, NotCapturable
from tests.gpu_double.streams import DEFAULT, here, refuse_in_graph, use
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

_pools = count(1)


class _Place(NamedTuple):
    """A tensor of the device, as a graph knows it: by its address."""

    storage: "Callable[[], Any]"
    address: int
    offset: int
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> Tensor:
        storage = self.storage()
        if storage is None:
            raise GraphOutdated(f"a graph uses a tensor {list(self.size)} that is gone")
        if storage.data_ptr() != self.address:
            raise GraphOutdated(
                f"a graph uses a tensor {list(self.size)} where it was, and it has moved"
            )
        return over(storage, self.offset, self.size, self.stride, self.dtype)


class _Step(NamedTuple):
    call: Callable[..., Any]
    args: Any
    outs: Sequence[_Place | None]


class CUDAGraph:
    """Stands for torch.cuda.CUDAGraph."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.is_broken = False
        self._steps: list[_Step] = []
        self._own: dict[int, Any] = {}
        """Memory that was made while it was recorded, by its identity."""
        self._before: dict[int, tuple[Any, Tensor]] = {}
        """What was in other memory before it was written, to be put back."""
        self._is_recorded = False

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        refuse_in_graph("capture_begin")
        if here.stream is DEFAULT:
            raise NotCapturable("the default stream can't be recorded")
        here.graph = self

    def capture_end(self) -> None:
        assert here.graph is self, "it is not being recorded"
        here.graph = None
        for storage, numbers in self._before.values():
            contents(storage).copy_(numbers)
        for storage in self._own.values():
            contents(storage).fill_(DEVICE_POISON)
        self._before.clear()
        if self.is_broken:
            self._steps.clear()
            raise RuntimeError(
                "CUDA error: operation failed due to a previous error during capture"
            )
        self._is_recorded = True

    def replay(self) -> None:
        refuse_in_graph("CUDAGraph.replay")
        assert self._is_recorded, "there is nothing to replay"
        self._use()
        with torch.inference_mode(), torch._C._DisableTorchDispatch():
            for call, args, outs in self._steps:
                args, kwargs = tree_map_only(_Place, _Place.tensor, args, is_leaf=_is_place)
                made = [
                    one for one in tree_leaves(call(*args, **kwargs)) if isinstance(one, Tensor)
                ]
                for place, one in zip(outs, made, strict=False):
                    if place is not None:
                        place.tensor().copy_(one)

    def pool(self) -> object:
        return self

    def reset(self) -> None:
        self._steps.clear()
        self._own.clear()

    # ------------------------------------------------------------ while it is recorded

    def will_write(self, storages: Iterable[Any]) -> None:
        for storage in storages:
            key = storage._cdata
            if key not in self._own and key not in self._before:
                self._before[key] = storage, contents(storage).clone()

    def record(self, call: Callable[..., Any], args: Any, made: Sequence[Tensor | None]) -> None:
        """`call` with `args`, and the tensors that come of it, None for those that lie in memory that was there: new
        memory is the graph's."""
        self._own |= {storage_of(one)._cdata: storage_of(one) for one in made if one is not None}
        kept = tree_map_only(_is_there, self._place, args)
        outs = [None if one is None else self._place(one) for one in made]
        self._steps.append(_Step(call, kept, outs))

    def _place(self, tensor: Tensor) -> _Place:
        storage = storage_of(tensor)
        is_own = storage._cdata in self._own
        return _Place(
            (lambda: storage) if is_own else weakref.ref(storage),
            storage.data_ptr(),
            tensor.storage_offset(),
            tensor.size(),
            tensor.stride(),
            tensor.dtype,
        )

    def _use(self) -> None:
        """On the stream that replays it: all that it uses, as if all of it were written."""
        places = [one for step in self._steps for one in tree_leaves(step.args, is_leaf=_is_place)]
        found = {id(s): s for one in places if _is_place(one) if (s := one.storage()) is not None}
        use((), found.values())


def _is_place(value: object) -> bool:
    return isinstance(value, _Place)


def _is_there(value: object) -> bool:
    return isinstance(value, Tensor) and type(storage_of(value)) is DeviceStorage


def pool_handle() -> tuple[int, int]:
    """Stands for torch.cuda.graph_pool_handle."""
    return 0, next(_pools)
