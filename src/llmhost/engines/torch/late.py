"""transformers without the half of its imports that serving never uses: they are made when somebody uses them.

transformers imports torch's distributed tensors, its compiler (which brings sympy), flex attention, accelerate and
scipy for names that a model on one device only compares with, or that training needs. While `late_imports` lasts its
modules get a `Late` for each of them, which imports the real thing when it is called or looked into. So do functions of
torch that would import sympy to find that a number is no symbol: making a model on the meta device calls them. Nobody
else's imports are touched, and what is imported already is used as it is.
"""

import builtins
import importlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from llmhost.engines.torch.known_names import known_names
from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.engines")

LATE = (
    "accelerate",
    "scipy.optimize",
    "torch._dynamo",
    "torch.distributed._composable",
    "torch.distributed._functional_collectives",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.nn.attention.flex_attention",
)
"""Packages and modules, each with all that is below it."""
_PACKAGE = "transformers"
_FIRST = ("transformers.modeling_utils", "transformers.generation.utils")
"""What models of all architectures import."""
_MARKS = ("allow_in_graph", "assume_constant_result", "disable")
"""Decorators that tell torch.compile something and do nothing else. What is served here isn't compiled by it."""
_SYMBOLS = "torch.fx.experimental.symbolic_shapes"


class Late:
    """A name that is imported when it is used. While its module isn't there, nothing is an instance of it."""

    def __init__(self, module: str, find: Callable[[], Any]) -> None:
        self._module, self._find = module, find

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = partial(_call, self._find, args, kwargs)
        return Late(self._module, result) if _Window.is_first else result()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if (
            _Window.is_first
        ):  # some only ask whether it is there, which it is in all torches that are served with
            return Late(self._module, partial(_attribute, self._find, name))
        return getattr(self._find(), name)

    def __instancecheck__(self, instance: object) -> bool:
        return self._module in sys.modules and isinstance(instance, self._find())

    def __subclasscheck__(self, kind: type) -> bool:
        return self._module in sys.modules and issubclass(kind, self._find())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._find(),)

    def __or__(self, other: object) -> Any:  # as in `name: Late | None`
        return Any

    __ror__ = __or__


def _call(find: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return find()(*args, **kwargs)


def _attribute(find: Callable[[], Any], name: str) -> Any:
    return getattr(find(), name)


def _find(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


class _LateModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Late(self.__name__, partial(_find, self.__name__, name))


class _Compiler(ModuleType):
    """torch._dynamo for those who mark functions for it; whoever wants more gets the real one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _mark if name in _MARKS else _find("torch._dynamo", name)


def _mark(function: Any = None, *args: Any, **kwargs: Any) -> Any:
    return function if callable(function) else _mark


class _Symbols(ModuleType):
    """What torch asks about sizes and conditions that may be symbols. Numbers are none."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        real = Late(self.__name__, partial(_find, self.__name__, name))
        return partial(_ask, _ANSWERS[name], real) if name in _ANSWERS else real


def _ask(answer: Callable[..., Any], real: Late, *args: Any) -> Any:
    return answer(*args) if all(_is_plain(arg) for arg in args) else real(*args)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(isinstance(part, int) for part in value)
    return isinstance(value, int)


def _itself(value: Any) -> Any:
    return value


def _itself_or_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_ANSWERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("expect_true", "guard_or_false", "guard_or_true"), _itself),
    **dict.fromkeys(("statically_known_true", "guarding_hint_or_throw", "size_hint"), _itself),
    **dict.fromkeys(("has_guarding_hint", "has_hint"), lambda _: True),
    "is_nested_int": lambda _: False,
    "sym_and": lambda *conditions: all(conditions),
    "sym_eq": lambda one, other: _itself_or_tuple(one) == _itself_or_tuple(other),
    "sym_or": lambda *conditions: any(conditions),
}
"""For whole numbers, truths and shapes."""


class _Window:
    """How imports are made at the moment: one for the process, as modules are. `lock` is held by whoever changes it."""

    lock = threading.Lock()
    open_count = 0
    close: Callable[[], None] = staticmethod(lambda: None)
    is_first = False
    """transformers itself is being imported, and nothing is computed with it yet."""
    is_refused = False
    """It could not be imported like this, and is imported plainly from then on."""


def import_transformers(names: Path | None = None) -> None:
    """Import torch, and of transformers what all models need.

    `names` is a file in which to keep what transformers would find out about itself at each start. Should a version of
    it not like to be imported like this, it is imported plainly.
    """
    import torch  # noqa: F401  (its own imports are not touched)

    if _FIRST[-1] in sys.modules:
        return
    try:
        with late_imports(), _first(), known_names(names):
            for module in _FIRST:
                importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - boundary: a library that is not as it was may raise anything
        log_event(log, "imports.plain", level=logging.WARNING, why=repr(error))
        _Window.is_refused = True
        for module in [one for one in sys.modules if one.partition(".")[0] == _PACKAGE]:
            del sys.modules[module]


@contextmanager
def _first() -> Iterator[None]:
    _Window.is_first = True
    try:
        yield
    finally:
        _Window.is_first = False


@contextmanager
def late_imports() -> Iterator[None]:
    """Modules of transformers that anybody imports meanwhile get what serving does not use late. Needs torch."""
    if _Window.is_refused:
        yield
        return
    with _Window.lock:
        if _Window.open_count == 0:
            _Window.close = _open()
        _Window.open_count += 1
    try:
        yield
    finally:
        with _Window.lock:
            _Window.open_count -= 1
            if _Window.open_count == 0:
                _Window.close()


def _open() -> Callable[[], None]:
    """Returns what undoes it."""
    import torch

    undo = ExitStack()
    plain = builtins.__import__
    _replace(undo, builtins, "__import__", _importer(plain, torch))
    if "torch._dynamo" not in sys.modules:
        for name in _MARKS:
            if (real := getattr(torch.compiler, name, None)) is not None:
                _replace(undo, torch.compiler, name, partial(_mark_ours, real))
        _replace(undo, torch, "_dynamo", _Compiler("torch._dynamo"))
    return undo.close


def _replace(undo: ExitStack, owner: Any, name: str, new: Any) -> None:
    """Until `undo` closes; what others put there meanwhile stays."""
    was_there, old = name in vars(owner), vars(owner).get(name)

    def put_back() -> None:
        if vars(owner).get(name) is not new:
            return
        if was_there:
            setattr(owner, name, old)
        else:
            delattr(owner, name)

    setattr(owner, name, new)
    undo.callback(put_back)


def _importer(plain: Callable[..., Any], torch: ModuleType) -> Callable[..., Any]:
    def importing(  # its parameters are those of __import__
        name: str,
        globals: Any = None,  # noqa: A002
        locals: Any = None,  # noqa: A002
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        if level == 0 and globals is not None and name not in sys.modules:
            importer = globals.get("__name__") or ""
            if fromlist and importer.startswith(f"{_PACKAGE}.") and _is_late(name):
                return _LateModule(name)
            if locals is not globals and importer.partition(".")[0] == "torch":  # in a function
                if name == "sympy" and not fromlist:
                    return _LateModule(name)
                if name == _SYMBOLS and fromlist:
                    return _Symbols(name)
                if name == "torch._dynamo" and importer == "torch._compile":
                    return torch  # it takes the decorator from there
        return plain(name, globals, locals, fromlist, level)

    return importing


def _is_late(name: str) -> bool:
    return any(name == late or name.startswith(f"{late}.") for late in LATE)


def _mark_ours(real: Callable[..., Any], function: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Functions of transformers stay as they are."""
    if function is None:
        return partial(_mark_ours, real, *args, **kwargs)
    if str(getattr(function, "__module__", "")).startswith(f"{_PACKAGE}."):
        return function
    return real(function, *args, **kwargs)
