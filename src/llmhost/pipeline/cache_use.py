"""What one request has to do with the cache, and identical requests that run at the same time."""

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from llmhost.cache.alike import Vector
from llmhost.cache.answer import Answer
from llmhost.cache.keys import Place
from llmhost.cache.learner import Kind
from llmhost.cache.response_cache import Rules
from llmhost.cache.verify import Facts
from llmhost.cache.wish import Wish

if TYPE_CHECKING:
    from llmhost.pipeline.context import RequestContext
    from llmhost.pipeline.stream import ReplayStream, StreamReader


class Status(StrEnum):
    """As the header `x-llmhost-cache` of an answer says it."""

    HIT = "hit"
    STALE = "stale"
    """A hit that is beyond its time, while a fresh answer is made."""
    SEMANTIC = "semantic"
    """The answer to a question that is only alike."""
    JOINED = "joined"
    """The answer of an identical request that ran already."""
    MISS = "miss"
    BYPASS = "bypass"
    """It said something of the cache, and has nothing to do with it."""


class Flight:
    """A request that runs, and those that are waiting for the same answer.

    They read along where nothing of the first request's own can end its answer early. Else they wait for its end, and
    if that was not the answer's, the first of them runs.
    """

    def __init__(self, priority: int) -> None:
        self.priority = priority
        loop = asyncio.get_running_loop()
        self.began: asyncio.Future[bool] = loop.create_future()
        """Done when it runs, with whether others may read along, or when it is known that it never will."""
        self.ended: asyncio.Future[None] = loop.create_future()
        self.stream: ReplayStream | None = None
        self.context: RequestContext | None = None
        """Of the request that runs."""

    @property
    def is_joinable(self) -> bool:
        stream = self.stream
        return stream is not None and not (stream.is_abandoned or stream.is_ended)

    def begin(
        self, context: "RequestContext", stream: "ReplayStream", *, may_be_joined: bool
    ) -> None:
        self.context = context
        self.stream = stream
        if not self.began.done():
            self.began.set_result(may_be_joined)

    def end(self) -> None:
        """Idempotent."""
        if not self.began.done():
            self.began.set_result(False)
        if not self.ended.done():
            self.ended.set_result(None)


@dataclass(slots=True)
class Meaning:
    """What is asked, where answers to alike questions will do."""

    partition: str
    facts: Facts
    vector: Vector
    similarity: float = 0.0
    """Of the question whose answer it has."""


@dataclass(frozen=True, slots=True)
class AlikeSearch:
    """What looking for alike questions goes by."""

    place: Place
    wish: Wish
    rules: Rules


@dataclass(slots=True)
class CacheUse:
    """One request's part."""

    status: Status
    key: str = ""
    stores: bool = False
    is_only: bool = False
    """A kept answer, or none."""
    ttl_s: float = 0.0
    stale_s: float = 0.0
    model: str = ""
    scope: str = ""
    files: str = ""
    """The mark of the model's files under which it looks and stores."""
    kind: Kind | None = None
    """What it has in common with others, for learned policies."""
    tag: str = ""
    priority: int = 0
    answer: Answer | None = None
    alike: AlikeSearch | None = None
    """Of a request that takes answers to alike questions."""
    meaning: Meaning | None = None
    """None where only the same will do."""
    age_s: int = 0
    leads: Flight | None = None
    follows: Flight | None = None
    reader: "StreamReader | None" = None
    """Of the stream of the request that it follows."""

    @property
    def is_hit(self) -> bool:
        """It does not run: it has another request's answer."""
        return self.answer is not None or self.reader is not None

    def let_go(self) -> None:
        """It does not want the other's answer any more, or has it. Idempotent."""
        if self.reader is not None:
            self.reader.close()
            self.reader = None
