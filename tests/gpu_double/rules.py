"""What hurts on a GPU, as errors. All that were raised are kept, for some are caught by those whom they are to tell."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class RuleBroken(RuntimeError):
    """CUDA's own errors are RuntimeErrors, too. Most of these it would not even raise."""

    found: ClassVar["list[RuleBroken]"] = []
    """All since the double was installed; whoever installed it hears of them at the end."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.found.append(self)


class Waited(RuleBroken):
    """The host waited for the device in a stretch that must not wait."""


class UsedTooEarly(RuleBroken):
    """A tensor of the host was used while a copy still filled it."""


class UsedTooLate(RuleBroken):
    """A tensor was used whose storage has been made too small for it."""


class ChangedTooEarly(RuleBroken):
    """A page-locked tensor was changed while a copy still read it."""


class NotCapturable(RuleBroken):
    """A call that can't be part of a graph, or must not be made while one is recorded."""


class GraphOutdated(RuleBroken):
    """A graph uses memory that was given back or has moved since it was recorded."""


class OutOfOrder(RuleBroken):
    """A stream uses what another has written or still reads, and nothing makes it wait for that."""


@contextmanager
def breaks(rule: type[RuleBroken]) -> Iterator[None]:
    """The block must end with that error, which is then nobody's fault."""
    before = len(RuleBroken.found)
    try:
        yield
    except rule:
        del RuleBroken.found[before:]
    else:
        raise AssertionError(f"nothing raised {rule.__name__}")


@contextmanager
def swallows(rule: type[RuleBroken]) -> Iterator[None]:
    """In the block that error is raised, and caught by somebody whose business it is."""
    before = len(RuleBroken.found)
    yield
    found = RuleBroken.found[before:]
    assert found and all(isinstance(one, rule) for one in found), found
    del RuleBroken.found[before:]


class _Stretch(threading.local):
    depth = 0


_stretch = _Stretch()


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever makes this thread wait for the device until the block ends raises `Waited`."""
    _stretch.depth += 1
    try:
        yield
    finally:
        _stretch.depth -= 1


def refuse_to_wait(what: str) -> None:
    if _stretch.depth:
        raise Waited(f"{what} waits for the device")
