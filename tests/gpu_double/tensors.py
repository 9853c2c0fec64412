"""Tensors that say that they are on the device, and what becomes of every call of torch that has to do with one.

The numbers lie in the tensor's own storage, so views, `.data`, `set_` and storages that are resized mean what they
always mean. A call is made on plain tensors over the same memory.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from tests.gpu_double.calls import INDEXING, ON_THE_CPU, is_view, waits, written_arguments
from tests.gpu_double.memory import DEVICE, is_pinned, onto_device, pinned, plain, storage_of
from tests.gpu_double.streams import (
    copy_later,
    here,
    refuse_if_filling,
    refuse_in_graph,
    refuse_to_copy_if_filling,
    use,
    wait,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class DeviceTensor(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def of(host: Tensor) -> "DeviceTensor":
        """Over the memory of a plain tensor, which is the device's from then on."""
        onto_device(host)
        return torch.Tensor._make_subclass(
            DeviceTensor, host, False, dispatch_device=True, device_for_backend_keys=DEVICE
        )

    def __repr__(self) -> str:
        return f"{plain(self)!r} on {DEVICE}"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return called(func, args, kwargs or {})


class Dispatch(TorchDispatchMode):
    """Of one thread: has calls without a tensor of the device come by, too."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # else torch imports its compiler
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return called(func, args, kwargs or {})


def called(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `func` gives, a call of torch of which any argument may be on the device."""
    if func is torch.ops.prim.device.default:
        return DEVICE
    name = "pin_memory" if kwargs.get("pin_memory") else func._opname
    if name in SPECIAL:
        result = SPECIAL[name](func, *args, **kwargs)
        if result is not NotImplemented:
            return result
    tensors = [*_tensors((args, kwargs))]
    if _goes_there(**kwargs) or any(isinstance(one, DeviceTensor) for one in tensors):
        return _computed(func, args, kwargs, tensors)
    if not is_view(func):
        for one in tensors:
            refuse_if_filling(one)
    return func(*args, **kwargs)


def _goes_there(*, device: torch.device | None = None, **_: Any) -> bool:
    return device is not None and device.type == "cuda"


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple | dict):
            yield from _tensors(value)


def _mapped(convert: Callable[[Tensor], Any], values: Any) -> Any:
    if isinstance(values, Tensor):
        return convert(values)
    if isinstance(values, dict):
        return {name: _mapped(convert, value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        made = [_mapped(convert, value) for value in values]
        return made if isinstance(values, list) else tuple(made)
    return values


# ------------------------------------------------------------ work on the device


def _computed(func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Any:
    """On the device; where a device is named, it is this one or another that the result goes to."""
    stays = kwargs.get("device") is None or _goes_there(**kwargs)
    if kwargs.get("device") is None:
        _refuse_mixture(func._opname, args, tensors)
    elif stays:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if waits(func, *args, **kwargs):
        wait(func._opname)
    there = [storage_of(one) for one in tensors if isinstance(one, DeviceTensor)]
    written = [storage_of(one) for one in _written(func, args, kwargs)]
    if here.graph is None:
        use(there, written)
    else:
        here.graph.will_write(written)
    owners: dict[int, DeviceTensor] = {}
    given = _mapped(partial(_taken, owners), (args, kwargs))
    result = ON_THE_CPU.get(func._opname, func)(*given[0], **given[1])
    if written:
        _follow(owners, given)
    if not stays:
        return result
    known = {one._cdata for one in there}
    new = [storage_of(one)._cdata not in known for one in _tensors([result])]
    made = _mapped(partial(_given, owners), result)
    fresh = [one if is_new else None for one, is_new in zip(_tensors([made]), new, strict=True)]
    if here.graph is None:
        use((), [storage_of(one) for one in fresh if one is not None])
    elif any(new) or written:
        here.graph.record(ON_THE_CPU.get(func._opname, func), (args, kwargs), fresh)
    return made


def _taken(owners: dict[int, "DeviceTensor"], one: Tensor) -> Tensor:
    """A plain tensor for one of the device; `owners` tells which."""
    if not isinstance(one, DeviceTensor):
        return one
    made = plain(one)
    owners[id(made)] = one
    return made


def _given(owners: dict[int, "DeviceTensor"], one: Tensor) -> Tensor:
    """And the way back."""
    owner = owners.get(id(one))
    return DeviceTensor.of(one) if owner is None else owner


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    for place, name in written_arguments(func):
        value = args[place] if place < len(args) else kwargs.get(name)
        yield from (one for one in _tensors([value]) if isinstance(one, DeviceTensor))


def _follow(owners: dict[int, "DeviceTensor"], given: Any) -> None:
    """The call may have given a tensor another form, or other memory."""
    for made in _tensors(given):
        owner = owners.get(id(made))
        if owner is not None and _form(owner) != _form(made):
            owner.data = DeviceTensor.of(made)


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return storage_of(tensor)._cdata, tensor.storage_offset(), tensor.size(), tensor.stride()


def _refuse_mixture(name: str, args: Any, tensors: Sequence[Tensor]) -> None:
    """As CUDA does, which takes single numbers of the host, and indices from there at the cost of a wait."""
    others = [one for one in tensors if not isinstance(one, DeviceTensor)]
    if name in INDEXING:
        _index(name, args)
        others = [one for one in others if not any(one is index for index in args[1])]
    if name != "set_" and any(one.dim() > 0 for one in others):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {name} found at least two, cuda:0 and cpu!"
        )


def _index(name: str, args: Any) -> None:
    indices = [one for one in args[1] if one is not None]
    if any(not isinstance(one, DeviceTensor) and one.dim() for one in indices):
        wait(f"{name} with indices of the host")
    if any(one.dtype in (torch.bool, torch.uint8) for one in indices):
        fills = "put" in name and args[2].numel() == 1 and not isinstance(args[2], DeviceTensor)
        if not fills:
            wait(f"{name} with a mask")


# ------------------------------------------------------------ between host and device


def _is_pinned(func: Any, tensor: Tensor, *_: Any, **__: Any) -> bool:
    return not isinstance(tensor, DeviceTensor) and is_pinned(tensor)


def _pinned(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A call that makes page-locked memory, or a tensor's own `pin_memory`."""
    refuse_in_graph("page-locked memory")
    if "pin_memory" in kwargs:
        made: Tensor = func(*args, **{**kwargs, "pin_memory": False})
        return pinned(made)
    source: Tensor = args[0]
    if isinstance(source, DeviceTensor):
        raise RuntimeError("only dense CPU tensors can be pinned")
    if is_pinned(source):
        return source
    refuse_if_filling(source)
    return pinned(source.clone(memory_format=torch.contiguous_format))


def _in_parts(func: Any, *args: Any, **kwargs: Any) -> Any:
    """`to` is made up of other calls."""
    with Dispatch():
        return func.decompose(*args, **kwargs)


def _moved(
    func: Any,
    source: Tensor,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    non_blocking: bool = False,
    memory_format: Any = None,
    **_: Any,
) -> Any:
    """`_to_copy`, from or to the device."""
    was_there = isinstance(source, DeviceTensor)
    if was_there and (device is None or device.type == "cuda"):
        kwargs = {"dtype": dtype, "memory_format": memory_format}
        return _computed(func, (source,), kwargs, [source])
    if not was_there and not _goes_there(device=device):
        return NotImplemented
    kept = torch.preserve_format if memory_format is None else memory_format
    made = torch.empty_like(
        plain(source), dtype=dtype or source.dtype, device="cpu", memory_format=kept
    )
    into = (pinned(made) if non_blocking else made) if was_there else DeviceTensor.of(made)
    _copy(into, source, non_blocking, is_new=True)
    return into


def _copied(func: Any, into: Tensor, source: Tensor, non_blocking: bool = False) -> Any:
    """`copy_`, from or to the device."""
    if isinstance(into, DeviceTensor) == isinstance(source, DeviceTensor):
        return NotImplemented
    _copy(into, source, non_blocking)
    return into


def _copy(into: Tensor, source: Tensor, non_blocking: bool, *, is_new: bool = False) -> None:
    """One of them is on the device. What has to be converted or gathered on the host goes by way of pageable memory."""
    is_to_host = isinstance(source, DeviceTensor)
    host = into if is_to_host else source
    is_direct = host.is_contiguous() and into.dtype is source.dtype and into.shape == source.shape
    is_quick = non_blocking and is_pinned(host) and is_direct
    if is_to_host:
        refuse_in_graph("a copy to the host")
        use([storage_of(source)], ())
    elif is_quick:
        refuse_to_copy_if_filling(host)
    else:
        refuse_if_filling(host)
    if here.graph is not None:
        if not is_quick:
            refuse_in_graph("a copy that is waited for")
        here.graph.record(torch.Tensor.copy_, ((into, source), {}), [into] if is_new else [])
        here.graph.will_write([storage_of(into)])
        plain(into).copy_(plain(source))
        return
    if not is_to_host:
        use((), [storage_of(into)])
    if is_quick:
        copy_later(*(plain(one) for one in (into, source)), is_to_host=is_to_host)
        return
    way = "to" if is_to_host else "from"
    wait(f"a copy {way} the host" + (" that is not page-locked" if non_blocking else ""))
    plain(into).copy_(plain(source))


SPECIAL: dict[str, Callable[..., Any]] = {
    "_pin_memory": _pinned,
    "_to_copy": _moved,
    "copy_": _copied,
    "is_pinned": _is_pinned,
    "pin_memory": _pinned,
    "to": _in_parts,
    "type_as": _in_parts,
}
"""Calls that are more than work on the device, by their names."""
