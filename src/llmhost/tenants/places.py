"""How many requests run at the same time on each level, and who waits for a place.

Each key has a queue of its own, first come, first served, and keys take turns: a key that sends more does not wait
less. A waiting request stands where the first full level is, so that a place that becomes free is looked at only for
those who wait for it. It takes its places on all levels together, or none.
"""

import asyncio
from bisect import insort
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from itertools import count

from llmhost.core.errors import LlmhostError
from llmhost.tenants.levels import Level
from llmhost.tenants.refusals import LimitReached

RETRY_AFTER_S = 1.0
"""Nobody knows when an answer ends; a second is what clients wait at first anyway."""


class _Waiter:
    __slots__ = ("key", "levels", "number", "ready", "stands_at")

    def __init__(self, key: Hashable, levels: Sequence[Level], number: int) -> None:
        self.key = key
        self.levels = levels
        self.number = number
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stands_at: Level | None = None

    def __lt__(self, other: "_Waiter") -> bool:
        return self.number < other.number


class Places:
    """Counts and queues. Used from one thread; levels without `max_concurrency` may not be given."""

    def __init__(self, *, queue_size: int, queue_wait_s: float) -> None:
        self._queue_size = queue_size
        self._queue_wait_s = queue_wait_s
        self._running: Counter[Hashable] = Counter()  # asked by `get`: what is missing costs a call
        self._queues: dict[Hashable, OrderedDict[Hashable, list[_Waiter]]] = {}
        """Of each full level: the waiting requests of each key, in the order of the keys' turns."""
        self._waiting: Counter[Hashable] = Counter()
        """Of each key."""
        self._numbers = count()
        self.waiting_by_dimension: Counter[str] = Counter()

    @property
    def running(self) -> int:
        """Places that are taken, on all levels together."""
        return self._running.total()

    def enter(self, levels: Sequence[Level]) -> bool:
        """Take a place on each level, if each has one."""
        running = self._running
        for level in levels:  # as `_full`, without a call
            most = level.limits.max_concurrency
            if most is not None and running.get(level.who, 0) >= most:
                return False
        self._take(levels)
        return True

    def has_room(self, levels: Iterable[Level]) -> bool:
        """Whether each level has a place, of those that count them."""
        for level in levels:
            most = level.limits.max_concurrency
            if most is not None and self._running.get(level.who, 0) >= most:
                return False
        return True

    async def wait(self, key: Hashable, levels: Sequence[Level]) -> None:
        """Wait in the key's queue until `enter` succeeds. Raises LimitReached when that is full or takes too long."""
        full = self._full(levels)
        assert full is not None, "enter first"
        if self._waiting[key] >= self._queue_size or self._queue_wait_s == 0:
            raise self._refusal(full, self._waiting[key])
        waiter = _Waiter(key, levels, next(self._numbers))
        self._waiting[key] += 1
        self._stand(waiter, full)
        try:
            async with asyncio.timeout(self._queue_wait_s):
                await waiter.ready
        except TimeoutError:
            if not _has_entered(waiter):
                raise self._refusal(waiter.stands_at or full, None) from None
        except BaseException:
            if _has_entered(waiter):
                self.leave(levels)
            raise
        finally:
            self._go(waiter)
            _drop(self._waiting, key)

    def leave(self, levels: Sequence[Level]) -> None:
        """Give the places back; those who wait for them go on."""
        running = self._running
        for level in levels:  # as `_drop`, without a call
            who = level.who
            left = running[who] - 1
            if left > 0:
                running[who] = left
            else:
                dict.__delitem__(running, who)
        if self._queues:
            for level in levels:
                self._call_next(level)

    def send_away(self, error: LlmhostError) -> None:
        """Nobody need wait any longer: all hear why."""
        for queues in list(self._queues.values()):
            for waiter in [waiter for queue in queues.values() for waiter in queue]:
                if not waiter.ready.done():
                    waiter.ready.set_exception(error)

    def _full(self, levels: Sequence[Level]) -> Level | None:
        for level in levels:
            most = level.limits.max_concurrency
            assert most is not None
            if self._running.get(level.who, 0) >= most:
                return level
        return None

    def _take(self, levels: Sequence[Level]) -> None:
        running = self._running
        for level in levels:
            who = level.who
            running[who] = running.get(who, 0) + 1

    def _call_next(self, level: Level) -> None:
        """Let in whom this level has room for; who has to wait for another one goes there."""
        queues = self._queues.get(level.who)
        while queues:
            waiter = next(iter(queues.values()))[0]
            full = self._full(waiter.levels)
            if full is not None and full.who == level.who:
                return
            self._go(waiter)
            if waiter.key in queues:
                queues.move_to_end(waiter.key)  # the next one is another key's turn
            if waiter.ready.done():
                continue  # its client has just left
            if full is not None:
                self._stand(waiter, full)
                continue
            self._take(waiter.levels)
            waiter.ready.set_result(None)

    def _stand(self, waiter: _Waiter, level: Level) -> None:
        insort(self._queues.setdefault(level.who, OrderedDict()).setdefault(waiter.key, []), waiter)
        waiter.stands_at = level
        self.waiting_by_dimension[level.dimension] += 1

    def _go(self, waiter: _Waiter) -> None:
        """Out of the queue where it stands. Idempotent."""
        level, waiter.stands_at = waiter.stands_at, None
        if level is None:
            return
        self.waiting_by_dimension[level.dimension] -= 1
        queues = self._queues[level.who]
        queues[waiter.key].remove(waiter)
        if not queues[waiter.key]:
            del queues[waiter.key]
        if not queues:
            del self._queues[level.who]

    def _refusal(self, level: Level, waiting: int | None) -> LimitReached:
        many = f"{level.name} may have {level.limits.max_concurrency} requests running at once"
        if waiting is None:
            text = f"{many}, and none of them ended within {self._queue_wait_s:g} s."
        elif waiting:
            text = f"{many}, and {waiting} more of this key are waiting already."
        else:
            text = f"{many}, and all of them are."
        return LimitReached(
            f"{text} Try again in {RETRY_AFTER_S:g}s.",
            dimension=level.dimension,
            limit="concurrency",
            retry_after_s=RETRY_AFTER_S,
        )


def _has_entered(waiter: _Waiter) -> bool:
    ready = waiter.ready
    return ready.done() and not ready.cancelled() and ready.exception() is None


def _drop(counts: "Counter[Hashable]", who: Hashable) -> None:
    left = counts[who] - 1
    if left > 0:
        counts[who] = left
    else:
        dict.__delitem__(counts, who)  # a Counter's own asks first whether it is there
