"""Who is next among those that wait: by urgency, then fairly between tenants, then by arrival. Pure.

Urgency is the priority, which a long wait improves, so that nobody waits for ever. Between tenants the one that was
served least goes first (virtual token counter: Sheng et al., 2024), counted in device time. What was preempted goes
before what has not begun.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from llmhost.schedule.sequence import Sequence

AGING_NS = 10 * 10**9
"""So long a wait is worth one step of priority."""
MOST_TENANTS = 4096
"""Tenants that are remembered while nothing of theirs is here."""

_by_key = attrgetter("key")


_Line = tuple[int, bool, str]
"""Those that only arrival tells apart: their priority, whether they have begun, and their tenant."""


class FairShares:
    """Device time that each tenant was served, as far as it decides who is next."""

    def __init__(self) -> None:
        self._served_ns: dict[str, int] = {}
        self._live: dict[str, int] = {}

    def of(self, tenant: str) -> int:
        return self._served_ns.get(tenant, 0)

    @property
    def only(self) -> str | None:
        """The tenant that is here, where there is but one."""
        return next(iter(self._live)) if len(self._live) == 1 else None

    def join(self, *tenants: str) -> None:
        """A sequence of each has come. A tenant that had none gets no credit for the time that it was away."""
        live = self._live
        for tenant in tenants:
            if tenant not in live:
                least = min((self._served_ns[name] for name in live), default=0)
                self._served_ns[tenant] = max(self._served_ns.get(tenant, 0), least)
                live[tenant] = 0
            live[tenant] += 1

    def leave(self, *tenants: str) -> None:
        """A sequence of each is gone."""
        live = self._live
        for tenant in tenants:
            live[tenant] -= 1
            if not live[tenant]:
                del live[tenant]
                if len(self._served_ns) > MOST_TENANTS:
                    self._served_ns = {name: self._served_ns[name] for name in live}

    def serve(self, tenant: str, ns: int) -> None:
        served_ns = self._served_ns
        if tenant in served_ns:
            served_ns[tenant] += ns


class WaitingQueue:
    """Sequences that wait for their admission."""

    def __init__(self) -> None:
        self._lines: dict[_Line, list[Sequence]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for line in self._lines.values() for sequence in line)

    @property
    def only_line(self) -> list[Sequence] | None:
        """All who wait, in order, where only arrival tells them apart."""
        return next(iter(self._lines.values())) if len(self._lines) == 1 else None

    def take_first(self, count: int) -> None:
        """So many of the only line are admitted."""
        [(name, line)] = self._lines.items()
        del line[:count]
        if not line:
            del self._lines[name]
        self._size -= count

    def add(self, *sequences: Sequence) -> None:
        line: list[Sequence] = []
        last: _Line | None = None
        for sequence in sequences:
            spec = sequence.spec
            name = (spec.priority, sequence.was_preempted, spec.tenant)  # as `_line_of`
            if name != last:
                line, last = self._lines.setdefault(name, []), name
            if not line or line[-1].key < sequence.key:
                line.append(sequence)
            else:
                insort(line, sequence, key=_by_key)
        self._size += len(sequences)

    def remove(self, sequence: Sequence) -> None:
        name = _line_of(sequence)
        line = self._lines[name]
        place = 0 if line[0] is sequence else bisect_left(line, sequence.key, key=_by_key)
        assert line[place] is sequence, "it is not in its line"
        del line[place]
        if not line:
            del self._lines[name]
        self._size -= 1

    def in_order(self, now_ns: int, shares: FairShares, ns_per_token: float) -> Iterator[Sequence]:
        """Who is next, one after the other, as if each were admitted when it is named."""
        if len(self._lines) == 1:
            for only in self._lines.values():
                yield from only
            return
        at = dict.fromkeys(self._lines, 0)
        served = {tenant: float(shares.of(tenant)) for _, _, tenant in at}

        def urgency(line: _Line) -> tuple[int, bool, float, int, int]:
            priority, has_begun, tenant = line
            head = self._lines[line][at[line]]
            waited_ns = max(now_ns - head.spec.arrival_ns, 0)
            aged = priority - waited_ns // AGING_NS
            return (aged, not has_begun, served[tenant], head.spec.arrival_ns, head.seq_id)

        while at:
            line = min(at, key=urgency) if len(at) > 1 else next(iter(at))
            sequence = self._lines[line][at[line]]
            yield sequence
            served[sequence.spec.tenant] += sequence.todo * ns_per_token
            at[line] += 1
            if at[line] == len(self._lines[line]):
                del at[line]


def _line_of(sequence: Sequence) -> _Line:
    spec = sequence.spec
    return spec.priority, sequence.was_preempted, spec.tenant
