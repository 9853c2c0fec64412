"""Where a model's chat template runs: code from the internet, in Jinja's sandbox, with a meter.

Besides what the sandbox refuses (underscore attributes, changing what it was given, `range` over 100,000), this
limits CPU time, looked at in loops and calls, without which nothing lasts; the size of what operators and calls
make; the widths that string methods, formats and padding filters may be given; and names on a namespace. Memory
below these sizes is not limited: the template is the operator's choice, and may be careless, but not at war.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

T = TypeVar("T")

CPU_S = 2.0
"""For one rendering. Published templates take about a millisecond."""
SIZE_LIMIT = 16_000_000
"""Characters or items."""
NUMBER_BITS = 4096
WIDTH_LIMIT = 10_000
TICKS_PER_LOOK = 256
"""Reading a thread's CPU clock is a system call."""

_WIDE_FORMAT = re.compile(r"\d{6}")


class TemplateTooHeavy(SecurityError):
    """The template took more time or room than any chat needs."""


class _Meter:
    __slots__ = ("_ends_at", "_ticks")

    def __init__(self) -> None:
        self._ticks = 0
        self._ends_at = time.thread_time() + CPU_S

    def tick(self, count: int = 1) -> None:
        self._ticks += count
        if self._ticks < TICKS_PER_LOOK:
            return
        self._ticks = 0
        if time.thread_time() > self._ends_at:
            raise TemplateTooHeavy(f"the chat template ran for more than {CPU_S:g} s")


_meter: ContextVar[_Meter | None] = ContextVar("template_meter", default=None)


@contextmanager
def metered() -> Iterator[None]:
    """Everything rendered inside, on this thread, shares one meter."""
    token = _meter.set(_Meter())
    try:
        yield
    finally:
        _meter.reset(token)


def _tick(count: int = 1) -> None:
    if (meter := _meter.get()) is not None:
        meter.tick(count)


def _weighed(value: T) -> T:
    if isinstance(value, int):
        if value.bit_length() > NUMBER_BITS:
            raise TemplateTooHeavy(f"the chat template made a number of over {NUMBER_BITS} bits")
    elif isinstance(value, str | list | tuple | dict) and len(value) > SIZE_LIMIT:
        raise TemplateTooHeavy(f"the chat template made something longer than {SIZE_LIMIT:,}")
    return value


def _refuse_wide(values: Iterable[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > WIDTH_LIMIT for value in values):
        raise TemplateTooHeavy(f"the chat template used a width or count over {WIDTH_LIMIT:,}")


def _refuse_wide_format(text: str) -> None:
    if _WIDE_FORMAT.search(text):
        raise TemplateTooHeavy(f"the chat template used a format wider than {WIDTH_LIMIT:,}")


def _narrow(padding_filter: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(padding_filter)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _refuse_wide([*args, *kwargs.values()])
        return padding_filter(*args, **kwargs)

    return guarded


# `pass_context` keeps these two from being evaluated while the template is compiled.
@pass_context
def _ticking(context: Context, items: Any) -> Any:
    """What a `for` runs over. Kept as it is when it has a length, which `loop` asks for."""
    if hasattr(items, "__len__"):
        _tick(1 + len(items))
        return items
    return _each(items)


def _each(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _tick()
        yield item


@pass_context
def _weighed_text(context: Context, text: Any) -> Any:
    return _weighed(text)


class _Metering(NodeTransformer):
    """Puts the two filters above around what every `for` runs over, and around every `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  # jinja2's naming
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_ticking")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802  # jinja2's naming
        self.generic_visit(node)
        return _filtered(node, "_weighed_text")


def _filtered(node: Any, name: str) -> nodes.Expr:
    return nodes.Filter(
        node, name, [], [], None, None, lineno=node.lineno, environment=node.environment
    )


class _Generation(Extension):
    """`{% generation %}` marks what an assistant said, for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Without underscore names, which Python itself would look at."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a name may be "self"
        names = dict(*args[1:], **kwargs)
        for name in names:
            _refuse_private(name)
        Namespace.__init__(args[0], names)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace can't hold the underscore name {name!r}")


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles and runs templates inside the limits above. Render inside `metered()`."""

    intercepted_binops = frozenset(["+", "-", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        self.filters |= {"_ticking": _ticking, "_weighed_text": _weighed_text}
        for name in ("batch", "center", "indent", "slice", "truncate", "wordwrap"):
            self.filters[name] = _narrow(self.filters[name])
        del self.globals["lipsum"]
        self.globals["namespace"] = _Namespace

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return _Metering().visit(tree)  # type: ignore[no-any-return]

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _tick()
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        if isinstance(owner := getattr(method, "__self__", None), str):
            if method.__name__.startswith("format"):
                _refuse_wide_format(owner)
            else:
                _refuse_wide(args)
        return _weighed(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        match operator, left, right:
            case "*", int(), str() | list() | tuple():
                _weighed_product(right, left)
            case "*", str() | list() | tuple(), int():
                _weighed_product(left, right)
            case "**", int(), int() if left.bit_length() * right > NUMBER_BITS:
                raise TemplateTooHeavy("the chat template asked for too high a power")
            case "%", str(), _:
                _refuse_wide_format(left)
        return _weighed(super().call_binop(context, operator, left, right))


def _weighed_product(items: str | list[Any] | tuple[Any, ...], times: int) -> None:
    if len(items) * times > SIZE_LIMIT:
        raise TemplateTooHeavy(f"the chat template made something longer than {SIZE_LIMIT:,}")
