"""Commands for an engine's thread, and how it waits for those that come together."""

import asyncio
from queue import Empty

from llmhost.schedule.inbox import Inbox


class Arrivals:
    """In place of the bell: each wait sees one more command, until none is left."""

    def __init__(self, inbox: Inbox, count: int) -> None:
        self.inbox, self.left = inbox, count

    def get(self, *, timeout: float) -> None:
        if not self.left:
            raise Empty
        self.left -= 1
        self.inbox._commands.append(list)


async def test_what_comes_without_a_pause_is_taken_together() -> None:
    inbox = Inbox(asyncio.get_running_loop())
    inbox.post(list)
    inbox._bell = Arrivals(inbox, 5)  # type: ignore[assignment]

    inbox.gather(0.002, 60.0)

    assert len(inbox.take()) == 6


async def test_a_steady_stream_is_not_waited_for_longer_than_allowed() -> None:
    inbox = Inbox(asyncio.get_running_loop())
    inbox.post(list)
    inbox._bell = Arrivals(inbox, 5)  # type: ignore[assignment]

    inbox.gather(0.002, 0.0)

    assert len(inbox.take()) == 1
