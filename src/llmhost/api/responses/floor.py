"""Who has the floor in a conversation: while a response is made in one, no other is, or each would go on with half.

All of it happens on the HTTP loop. A task that ends has let go of what it held, however it ended.
"""

import asyncio
from functools import partial
from typing import Any

from llmhost.core.errors import ConversationLocked

Place = tuple[str, str]
"""A scope, and a conversation in it."""


class Floor:
    """One per host."""

    def __init__(self) -> None:
        self._held: dict[Place, asyncio.Task[Any]] = {}

    def take(self, scope: str, conversation: str | None) -> None:
        """For the task that asks. Raises ConversationLocked."""
        if conversation is None:
            return
        place = (scope, conversation)
        if place in self._held:
            raise ConversationLocked(conversation)
        task = asyncio.current_task()
        assert task is not None
        self._give(place, task)

    def pass_on(self, scope: str, conversation: str | None, task: "asyncio.Task[Any]") -> None:
        """What the task that asks holds is another's from now on."""
        if conversation is not None:
            self._give((scope, conversation), task)

    def let_go(self, scope: str, conversation: str | None) -> None:
        """Whoever held it. Idempotent."""
        if conversation is not None:
            self._held.pop((scope, conversation), None)

    def let_go_of_mine(self) -> None:
        """All that the task that asks holds, which goes on."""
        task = asyncio.current_task()
        for place in [place for place, holder in self._held.items() if holder is task]:
            del self._held[place]

    def _give(self, place: Place, task: "asyncio.Task[Any]") -> None:
        self._held[place] = task
        task.add_done_callback(partial(self._ended, place))

    def _ended(self, place: Place, task: "asyncio.Task[Any]") -> None:
        if self._held.get(place) is task:
            del self._held[place]
