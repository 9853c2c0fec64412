"""One budget at work: what of it is used and held, for each span of time and, where it is per run, for each run.

What was used is counted from the moment a budget is in force; what came before is added once it has been summed.
Until then it refuses nobody.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from heapq import nlargest
from typing import NamedTuple

from llmhost.tenants.balance import Balance, Grant
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import EVER, EVER_NS, Span, span_of, zone_of

KEPT_RUNS = 100_000
"""Of each budget, so many runs are remembered: those that were heard of last."""
KEPT_SPANS = 3
"""This one, the one before, and one that a clock was ahead in."""
UNLIMITED = 2**63

Run = tuple[str | None, str | None, str]
"""A key's run: key, team, and what the caller calls it."""


class Pot:
    """What can be used up: a budget's, or one run's of it, in one span. Times are requests' arrivals."""

    __slots__ = ("account", "held", "is_plain", "run", "span", "spent", "users")

    def __init__(self, account: "Account", span: Span, run: Run | None = None) -> None:
        self.account = account
        self.span = span
        self.run = run
        self.spent = 0
        self.held = 0
        self.users = 0
        """Requests that hold something of it, be it nothing yet."""
        self.is_plain = run is None
        """To hold and to spend is to add: whoever has several of them does so without a call for each."""

    @property
    def limit(self) -> int:
        return self.account.budget.limit_nano

    @property
    def resets_ns(self) -> int | None:
        """When all of it is there again; None for never."""
        return self.span.until_ns if self.span.until_ns < EVER_NS else None

    def room(self, utc_ns: int) -> int:
        """What may be used more; negative where more is used or held than the limit is now."""
        account = self.account
        if account.is_counting:
            return UNLIMITED
        if utc_ns >= account.until_ns:
            return 0
        return account.limit_nano - self.spent - self.held

    def hold(self, nano: int, utc_ns: int) -> None:
        self.held += nano
        if self.run is not None:
            self.account.remember(self)

    def spend(self, nano: int, utc_ns: int) -> None:
        self.spent += nano
        if self.run is not None:
            self.account.remember(self)


class BalancePot(Pot):
    """What was paid in."""

    __slots__ = ("balance",)

    def __init__(self, account: "Account") -> None:
        self.balance = Balance(account.budget.created_ns)
        super().__init__(account, EVER)
        self.is_plain = False

    @property
    def limit(self) -> int:
        return self.balance.granted

    def room(self, utc_ns: int) -> int:
        return self.balance.room(utc_ns)

    def hold(self, nano: int, utc_ns: int) -> None:
        self.held += nano
        self.balance.hold(nano, utc_ns)

    def spend(self, nano: int, utc_ns: int) -> None:
        self.spent += nano
        self.balance.spend(nano, utc_ns)


class Standing(NamedTuple):
    """A budget, or one run of it, at one moment, in nano-dollars."""

    limit: int
    spent: int
    held: int
    remaining: int
    resets_ns: int | None


class Account:
    """One budget's pots. Spans that are over are kept for as long as requests of theirs may still come."""

    def __init__(self, budget: Budget, now_ns: int, *, is_counting: bool = False) -> None:
        self.is_counting = is_counting
        self.change(budget)
        self._zone = zone_of(budget.zone)
        self._span = span_of(budget.period, self._zone, now_ns)
        self._pots: dict[int, OrderedDict[Run | None, Pot]] = {}
        """By the beginning of their span, oldest first."""
        self.usual: Pot | None = None
        """Of requests that arrive in this span, where runs are not counted; None while it has to be asked for."""
        self.usual_since_ns, self.usual_until_ns = self._span.since_ns, self._span.until_ns
        self._begin(self._span)
        self._note_usual()
        self.first_span = self._span
        """What was used before in this span is not known here, and what was used in spans before does not matter."""

    def change(self, budget: Budget) -> None:
        """Go on with another amount, or another end."""
        self.budget = budget
        self.limit_nano = budget.limit_nano
        self.until_ns = EVER_NS if budget.until_ns is None else budget.until_ns

    @property
    def balance(self) -> Balance:
        """Of a budget that is one."""
        pot = self._pots[self._span.since_ns][None]
        assert isinstance(pot, BalancePot), "not a balance"
        return pot.balance

    def pot(self, run: Run | None, utc_ns: int) -> Pot:
        """What a request that arrives then is to be held against.

        Without a run it is a run of its own, where runs are counted.
        """
        span = self._span
        if not span.since_ns <= utc_ns < span.until_ns:
            span = self._turn(utc_ns)
        if not self.budget.is_per_run:
            return self._pots[span.since_ns][None]
        pot = self._pots[span.since_ns].get(run)
        return Pot(self, span, run) if pot is None else pot

    def known_pot(self, run: Run | None, utc_ns: int) -> Pot | None:
        """The same for one that came in before, perhaps before there was this budget: None where it is too old."""
        since_ns = self.budget.created_ns if self.budget.is_balance else next(iter(self._pots))
        return self.pot(run, utc_ns) if utc_ns >= since_ns else None

    def remember(self, pot: Pot) -> None:
        """Keep what is known of a run, and forget the run that was not heard of for the longest time."""
        pots = self._pots.get(pot.span.since_ns)
        if pots is None:
            return  # the span was over long ago
        if not pot.spent and not pot.users:
            pots.pop(pot.run, None)
            return
        pots[pot.run] = pot
        pots.move_to_end(pot.run)
        while len(pots) > KEPT_RUNS:
            oldest = next(iter(pots.values()))
            if oldest.users:
                pots.move_to_end(oldest.run)
                break
            del pots[oldest.run]

    def counted(self, sums: Mapping[Run | None, int]) -> None:
        """Add what was used before, and begin to refuse."""
        self.count(sums)
        self.is_counting = False

    def count(self, sums: Mapping[Run | None, int]) -> None:
        """Add a part of what was used before."""
        pots = self._pots.get(self.first_span.since_ns, OrderedDict[Run | None, Pot]())
        for run, nano in sums.items():
            pot = pots.get(run) or Pot(self, self.first_span, run)
            pot.spent += nano
            if run is not None:
                self.remember(pot)

    def grant(self, grants: Iterable[Grant]) -> None:
        for grant in grants:
            self.balance.grant(grant)

    def standing(self, utc_ns: int) -> Standing:
        """Of a budget that is not per run."""
        return standing_of(self.pot(None, utc_ns), utc_ns)

    def runs(self, utc_ns: int) -> list[tuple[Run, Standing]]:
        """Those that are remembered in this span, the dearest first."""
        return dearest(self.run_pots(utc_ns), utc_ns, KEPT_RUNS)

    def run_pots(self, utc_ns: int) -> list[Pot]:
        """The same as pots, in no order that matters: there may be very many."""
        if not self.budget.is_per_run:
            return []
        return list(self._pots[self.pot(None, utc_ns).span.since_ns].values())

    def pots(self) -> list[Pot]:
        """All that are remembered."""
        return [pot for pots in self._pots.values() for pot in pots.values()]

    def _begin(self, span: Span) -> None:
        pots: OrderedDict[Run | None, Pot] = OrderedDict()
        if self.budget.is_balance:
            pots[None] = BalancePot(self)
        elif not self.budget.is_per_run:
            pots[None] = Pot(self, span)
        self._pots[span.since_ns] = pots

    def _note_usual(self) -> None:
        span = self._span
        self.usual = None if self.budget.is_per_run else self._pots[span.since_ns][None]
        self.usual_since_ns, self.usual_until_ns = span.since_ns, span.until_ns

    def _turn(self, utc_ns: int) -> Span:
        """The span of a request that came in another than the last. A clock that was set back opens none before those
        that are remembered; after one that was ahead for a while, days go on as if it had not been."""
        span, oldest_ns = span_of(self.budget.period, self._zone, utc_ns), next(iter(self._pots))
        if span.since_ns < oldest_ns:
            return span_of(self.budget.period, self._zone, oldest_ns)
        if span.since_ns not in self._pots:
            self._begin(span)
            self._pots = dict(sorted(self._pots.items()))
        self._span = span
        while len(self._pots) > KEPT_SPANS:
            del self._pots[next(iter(self._pots))]
        self._note_usual()
        return span


def dearest(pots: Iterable[Pot], utc_ns: int, most: int) -> list[tuple[Run, Standing]]:
    """Of runs, so many that have used most. It only reads, and may do so in a thread."""
    found = nlargest(most, pots, key=lambda pot: pot.spent + pot.held)
    return [(pot.run, standing_of(pot, utc_ns)) for pot in found if pot.run is not None]


def standing_of(pot: Pot, utc_ns: int) -> Standing:
    return Standing(
        limit=pot.limit,
        spent=pot.spent,
        held=pot.held,
        remaining=max(pot.room(utc_ns), 0),
        resets_ns=pot.resets_ns,
    )
