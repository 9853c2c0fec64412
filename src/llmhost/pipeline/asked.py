"""A request that repeats one before it, or differs from it in what it says alone, on its way in."""

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from llmhost.core.request import GenerationRequest
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.generation import Generation

Ran = Generation | Exception | None
"""What runs, or ran; or why it is refused, after that has been metered; or nothing: it has to take the long way."""
Known = TypeVar("Known")


class Asked(msgspec.Struct, Generic[Known], eq=False):
    """One of them."""

    known: Known
    """What is known of the one before."""
    request_id: str
    arrived_ns: int
    utc_ns: int
    then: Callable[[Ran], None]
    """Told once: of a generation when it has ended, and of what else there is as soon as that is known."""
    read: Callable[[], GenerationRequest | None] | None = None
    """Of one that says something else: what it asks, under its id; None where that is read on the long way alone."""
    weight: int = 1
    """How many that say the same take as long to let in."""
    is_stream: bool = False
    """Its answer is read while it is made: `then` is told of the generation when that runs, and not of its end."""
    context: RequestContext | None = None
    ran: Ran = None
    is_gone: bool = False

    @property
    def known_context(self) -> RequestContext:
        """Once there is one."""
        assert self.context is not None
        return self.context

    def leave(self) -> None:
        """Its caller is gone. Idempotent."""
        self.is_gone = True
        if isinstance(self.ran, Generation):
            self.ran.leave()
