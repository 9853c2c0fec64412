"""What guards, and embedders for the cache, took for each request that is under way, until the request is booked.

A guard may be asked several times for one request, and the request may end in many ways meanwhile: refused, cut, left.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from llmhost.core.output import Usage

MOST = 100_000
"""Requests under way; what belongs to the oldest beyond them becomes nobody's."""

Bear = Callable[[str, Usage], None]
"""Takes what a sequence on a device has cost that belongs to no request."""


NOTHING_USED = Usage()


@dataclass(frozen=True, slots=True)
class Judging:
    """What others' models took for one request."""

    texts: int = 0
    usage: Usage = NOTHING_USED
    device: str = ""
    embedding: Usage = NOTHING_USED
    """What finding alike questions in the cache took: part of the request's own computing."""
    embedder_device: str = ""


NO_JUDGING = Judging()


class Tabs:
    """One for each node, on the HTTP loop."""

    def __init__(self, bear: Bear) -> None:
        self._bear = bear
        self._open: OrderedDict[str, Judging] = OrderedDict()

    def add(self, request_id: str, texts: int, usage: Usage, device: str) -> None:
        """A guard was done with texts of this request."""
        before = self._open.get(request_id, NO_JUDGING)
        texts, usage = before.texts + texts, before.usage + usage
        self._put(request_id, replace(before, texts=texts, usage=usage, device=device))

    def add_embedding(self, request_id: str, usage: Usage, device: str) -> None:
        """A text of this request was made a vector."""
        before = self._open.get(request_id, NO_JUDGING)
        usage = before.embedding + usage
        self._put(request_id, replace(before, embedding=usage, embedder_device=device))

    def _put(self, request_id: str, judging: Judging) -> None:
        self._open[request_id] = judging
        if len(self._open) > MOST:
            _, oldest = self._open.popitem(last=False)
            self._bear_all(oldest)

    def take(self, request_id: str) -> Judging:
        """All that was taken for a request, which is being booked."""
        return self._open.pop(request_id, NO_JUDGING) if self._open else NO_JUDGING

    def drop(self, request_id: str) -> None:
        """The request is never booked: what was taken for it is nobody's."""
        left = self._open.pop(request_id, None)
        if left is not None:
            self._bear_all(left)

    def _bear_all(self, left: Judging) -> None:
        for device, usage in ((left.device, left.usage), (left.embedder_device, left.embedding)):
            if usage is not NOTHING_USED:
                self._bear(device, usage)
