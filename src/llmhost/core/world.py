"""One number that changes whenever anything does that requests are answered by.

Who remembers what was found out about a request remembers the number, too, and forgets when it is another one. Whoever
owns something that such memories rest on says when it changes: keys, teams and organisations, prices, policies, models
and their adapters. What the clock changes (a key that expires, a price to come) is no change of the world.
"""


class World:
    """Of one node. Read and changed from the event loop's thread."""

    __slots__ = ("generation",)

    def __init__(self) -> None:
        self.generation = 0

    def changed(self) -> None:
        """What was found out before need not be so any more."""
        self.generation += 1
