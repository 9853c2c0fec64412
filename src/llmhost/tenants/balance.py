"""What is left of money that was paid in, where some of it expires. Pure.

Credits that expire first are used first, and never by a request that arrived after. Time is cut into stretches
wherever a credit begins or expires; within one, the same credits can be used, so that only sums are kept, and what is
left does not depend on the order in which requests end. What was used beyond all credits is a debt, paid by the next.
"""

from bisect import bisect_right, insort
from dataclasses import dataclass
from typing import NamedTuple

from llmhost.tenants.periods import EVER_NS


@dataclass(frozen=True, slots=True)
class Grant:
    """Money that can be used from since <= time < until."""

    id: str
    nano: int
    since_ns: int
    until_ns: int = EVER_NS


class _Left(NamedTuple):
    """In the order of use."""

    until_ns: int
    since_ns: int
    id: str
    nano: int


class _Begin(NamedTuple):
    """How things stand at the beginning of a stretch, with what begins there and without what expires."""

    left: tuple[_Left, ...]
    debt: int
    room: int
    """All that is left, less the debt."""


class Balance:
    """Grants, and what requests use and hold of them by their arrival."""

    def __init__(self, since_ns: int) -> None:
        self._cuts: list[int] = [since_ns]
        """Where stretches begin."""
        self._grants: dict[int, list[Grant]] = {}
        """By their beginning."""
        self._spent = [0]
        self._held = [0]
        self._begins: list[_Begin] = []
        """Of the first stretches, as far as nothing has changed since they were computed."""
        self._latest_ns = since_ns
        self.granted = 0

    @property
    def spent(self) -> int:
        return sum(self._spent)

    @property
    def held(self) -> int:
        return sum(self._held)

    @property
    def stretches(self) -> list[tuple[int, int]]:
        """From when to when each lasts."""
        return list(zip(self._cuts, (*self._cuts[1:], EVER_NS), strict=True))

    def cut(self, now_ns: int) -> int:
        """Begin a new stretch, now or right after the latest arrival; a grant can begin there."""
        self._latest_ns = max(now_ns, self._latest_ns + 1)
        return self._cut(self._latest_ns)

    def grant(self, grant: Grant) -> None:
        """Pay in, from a time on that `cut` gave. What has already expired lasts until the latest arrival at least."""
        self._cut(grant.since_ns)
        if grant.until_ns < EVER_NS:
            self._cut(grant.until_ns)
        self._grants.setdefault(grant.since_ns, []).append(grant)
        self.granted += grant.nano
        del self._begins[self._place(grant.since_ns) :]

    def spend(self, nano: int, utc_ns: int) -> None:
        """Use money, whether or not there is any; negative gives back."""
        place = self._arrive(utc_ns)
        self._spent[place] += nano
        del self._begins[place + 1 :]

    def hold(self, nano: int, utc_ns: int) -> None:
        """Set money aside; negative gives back."""
        place = self._arrive(utc_ns)
        self._held[place] += nano
        del self._begins[place + 1 :]

    def room(self, utc_ns: int) -> int:
        """What a request that arrived then may use more; negative where more is used or held than there is.

        It can use what it could when it came, if nobody who came later has: or what there is now.
        """
        place, now = self._arrive(utc_ns), self._place(self._latest_ns)
        self._compute(now)
        then = self._room_at(place)
        for later in range(place + 1, now + 1):
            if self._spent[later] or self._held[later]:
                then = min(then, self._room_at(later))
        return then if place == now else max(then, self._room_at(now))

    def left(self, now_ns: int) -> dict[str, int]:
        """What of each grant is neither used nor held nor expired; used-up ones are not in there."""
        return {one.id: one.nano for one in self._left_at(now_ns)}

    def next_expiry_ns(self, now_ns: int) -> int | None:
        """When some of what is left expires; None where nothing does."""
        left = self._left_at(now_ns)
        return left[0].until_ns if left and left[0].until_ns < EVER_NS else None

    def _left_at(self, now_ns: int) -> tuple[_Left, ...]:
        place = max(self._place(now_ns), self._place(self._latest_ns))
        self._compute(place)
        left, _ = self._used_in(place)
        return left

    def _room_at(self, place: int) -> int:
        """At the end of a stretch."""
        return self._begins[place].room - self._spent[place] - self._held[place]

    def _used_in(self, place: int) -> tuple[tuple[_Left, ...], int]:
        """What is left at the end of a stretch, and what was used beyond it."""
        begin = self._begins[place]
        return _used(begin.left, begin.debt + self._spent[place] + self._held[place])

    def _cut(self, at_ns: int) -> int:
        place = self._place(at_ns)
        if self._cuts[place] != at_ns and at_ns > self._cuts[0]:
            insort(self._cuts, at_ns)
            self._spent.insert(place + 1, 0)
            self._held.insert(place + 1, 0)
            del self._begins[place + 1 :]
        return at_ns

    def _place(self, utc_ns: int) -> int:
        return max(bisect_right(self._cuts, utc_ns) - 1, 0)

    def _arrive(self, utc_ns: int) -> int:
        if utc_ns > self._latest_ns:
            self._latest_ns = utc_ns
        return self._place(utc_ns)

    def _compute(self, until: int) -> None:
        for place in range(len(self._begins), until + 1):
            before, debt = self._used_in(place - 1) if place else ((), 0)
            since_ns = self._cuts[place]
            left = [one for one in before if one.until_ns > since_ns]
            for grant in self._grants.get(since_ns, ()):
                if grant.until_ns > since_ns:
                    insort(left, _Left(grant.until_ns, grant.since_ns, grant.id, grant.nano))
            room = sum(one.nano for one in left) - debt
            self._begins.append(_Begin(tuple(left), debt, room))


def _used(left: tuple[_Left, ...], nano: int) -> tuple[tuple[_Left, ...], int]:
    """What is left after some was used, the first to expire first, and what was used beyond all of it."""
    rest: list[_Left] = []
    for one in left:
        taken = min(max(nano, 0), one.nano)
        nano -= taken
        if taken < one.nano:
            rest.append(one._replace(nano=one.nano - taken))
    return tuple(rest), nano
