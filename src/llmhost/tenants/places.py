"""How many requests run at the same time on each level, and who waits for a place.

Each key has a queue of its own, first come, first served, and keys take turns: a key that sends more does not wait
less. A waiting request stands where the first full level is, so that a place that becomes free is looked at only for
those who wait for it. It takes its places on all levels together, or none.
"""

import asyncio
from bisect import insort
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from itertools import count

from llmhost.core.errors import LlmhostError
from llmhost.tenants.levels import Level
from llmhost.tenants.refusals import LimitReached

KEPT_LEVELS = 1_000
RETRY_AFTER_S = 1.0
"""Nobody knows when an answer ends; a second is what clients wait at first anyway."""


class _Running:
    """How many run at the same time under one key, team, organisation or model."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


_Bounds = tuple[tuple[_Running, int], ...]
"""Of each level: how many run, and how many may."""


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
        self._running: dict[Hashable, _Running] = {}
        self._known: dict[int, tuple[Sequence[Level], _Bounds]] = {}
        """What was looked up for levels, by the id of their list, which is kept alive here."""
        self._queues: dict[Hashable, OrderedDict[Hashable, list[_Waiter]]] = {}
        """Of each full level: the waiting requests of each key, in the order of the keys' turns."""
        self._waiting: Counter[Hashable] = Counter()
        """Of each key."""
        self._numbers = count()
        self.waiting_by_dimension: Counter[str] = Counter()

    @property
    def running(self) -> int:
        """Places that are taken, on all levels together."""
        return sum(one.count for one in self._running.values())

    def enter(self, levels: Sequence[Level]) -> bool:
        """Take a place on each level, if each has one."""
        bounds = self._bounds(levels)
        for running, most in bounds:
            if running.count >= most:
                return False
        for running, _ in bounds:
            running.count += 1
        return True

    def enter_all(self, levels: Sequence[Level], count: int) -> bool:
        """`enter` for so many, all of them or none."""
        bounds = self._bounds(levels)
        if any(running.count + count > most for running, most in bounds):
            return False
        for running, _ in bounds:
            running.count += count
        return True

    def has_room(self, levels: Sequence[Level]) -> bool:
        """Whether each level has a place, of those that count them."""
        return all(running.count < most for running, most in self._bounds(levels))

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
        for running, _ in self._bounds(levels):
            running.count -= 1
        if self._queues:
            for level in levels:
                self._call_next(level)

    def leave_all(self, levels: Sequence[Level], count: int) -> None:
        """Give back what `enter_all` took, in the same turn: nobody can have begun to wait for it."""
        for running, _ in self._bounds(levels):
            running.count -= count

    def send_away(self, error: LlmhostError) -> None:
        """Nobody need wait any longer: all hear why."""
        for queues in list(self._queues.values()):
            for waiter in [waiter for queue in queues.values() for waiter in queue]:
                if not waiter.ready.done():
                    waiter.ready.set_exception(error)

    def _bounds(self, levels: Sequence[Level]) -> _Bounds:
        """Looked up once for as long as the same list of levels comes again."""
        known = self._known.get(id(levels))
        if known is not None and known[0] is levels:
            return known[1]
        if len(self._known) >= KEPT_LEVELS:
            self._forget_idle()
        bounds = tuple((self._running_of(level), _most(level)) for level in levels)
        self._known[id(levels)] = levels, bounds
        return bounds

    def _running_of(self, level: Level) -> _Running:
        running = self._running.get(level.who)
        if running is None:
            running = self._running[level.who] = _Running()
        return running

    def _forget_idle(self) -> None:
        """Those under whom nobody runs; with all that was looked up, which refers to them."""
        self._known.clear()
        self._running = {who: one for who, one in self._running.items() if one.count}

    def _full(self, levels: Sequence[Level]) -> Level | None:
        for level, (running, most) in zip(levels, self._bounds(levels), strict=True):
            if running.count >= most:
                return level
        return None

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
            self.enter(waiter.levels)
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


def _most(level: Level) -> int:
    most = level.limits.max_concurrency
    assert most is not None, "it counts none"
    return most


def _drop(counts: "Counter[Hashable]", who: Hashable) -> None:
    left = counts[who] - 1
    if left > 0:
        counts[who] = left
    else:
        dict.__delitem__(counts, who)  # a Counter's own asks first whether it is there
