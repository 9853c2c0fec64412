"""What may still be spent: budgets and the holds on them, in memory alone.

A request holds money before it is served and raises its hold as its answer grows; at the end what it used is settled
and the rest is free again. What is free is always the limit less what was settled less the holds that are there, on
every budget over the caller, and all of them are asked before any is changed. Used from the HTTP loop's thread only.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from llmhost.core.caller import Caller
from llmhost.observe.logs import log_event
from llmhost.tenants.budget_refusals import refusal
from llmhost.tenants.budgets import LEVELS, Budget
from llmhost.tenants.pots import UNLIMITED, Account, Pot, Run, Standing

log = logging.getLogger("llmhost.budgets")

HOLD_NS = 900 * 10**9
"""After so long without an end somebody asks whether a hold's request still runs."""
KEPT_CALLERS = 10_000
_Holder = tuple[str | None, str | None]
"""(team, key) within an organisation; both None for all of it."""


@dataclass(frozen=True, slots=True)
class Tightest:
    """How the budget stands that leaves a caller the least."""

    level: str
    limit_nano: int
    remaining_nano: int
    reset_utc_ns: int | None


class BudgetHold(msgspec.Struct, eq=False):
    """Money set aside for one request, on every budget over its caller. It belongs to the span of its arrival."""

    _accounts: "Accounts"
    caller: Caller
    run_id: str | None
    held_nano: int
    utc_ns: int
    request_id: str
    expires_ns: int
    pots: tuple[Pot, ...]
    first_remaining_nano: int | None
    """What `remaining_nano` was when it had been made."""
    _is_live: bool = True

    @property
    def is_live(self) -> bool:
        """Neither settled nor voided."""
        return self._is_live

    def raise_by(self, nano: int, *, least: int = 1) -> int:
        """Hold up to `nano` more: as much as every budget has room for, or nothing if that is less than `least`."""
        assert nano >= 0, "a hold is only ever raised"
        if not self._is_live:
            return 0
        utc_ns = self.utc_ns
        for pot in self.pots:
            room = pot.room(utc_ns)
            if room < nano:
                nano = room
        if nano < least or nano <= 0:
            return 0
        for pot in self.pots:
            pot.hold(nano, utc_ns)
        self.held_nano += nano
        return nano

    def settle(self, nano: int) -> int | None:
        """The request has ended and cost so much, of what it held; the rest is free again. The first end counts. What
        `remaining_nano` says then."""
        if not self._is_live:
            self._accounts.settled_late(self, nano)
            return self.remaining_nano
        held_nano, utc_ns = self.held_nano, self.utc_ns
        self._is_live, self.held_nano = False, 0
        self._accounts.drop(self)
        least: int | None = None
        for pot in self.pots:  # as `_end` and `remaining_nano`, in one loop
            account = pot.account
            pot.users -= 1
            if pot.is_plain:
                pot.held -= held_nano
                pot.spent += nano
            else:
                pot.hold(-held_nano, utc_ns)
                pot.spend(nano, utc_ns)
                self._accounts.forget_if_idle(pot)
            if account.is_counting:
                continue
            if pot.is_plain and utc_ns < account.until_ns:
                room = account.limit_nano - pot.spent - pot.held
            else:
                room = pot.room(utc_ns)
            if least is None or room < least:
                least = room
        assert 0 <= nano <= held_nano, f"{nano} nano-dollars were used, and {held_nano} were held"
        return least if least is None or least > 0 else 0

    def void(self) -> None:
        """The request has ended and cost nothing. The first end counts."""
        if self._is_live:
            self._end()
            for pot in self.pots:
                self._accounts.forget_if_idle(pot)

    def join(self, pot: Pot) -> None:
        """Count against one more budget, whether or not that has room."""
        self.pots = (*self.pots, pot)
        pot.users += 1
        pot.hold(self.held_nano, self.utc_ns)

    def part(self, account: Account) -> None:
        """No longer count against a budget."""
        self.pots = tuple(pot for pot in self.pots if pot.account is not account)

    @property
    def tightest(self) -> Tightest | None:
        """None where all its budgets have ended."""
        return tightest_of(self.pots, self.utc_ns)

    @property
    def remaining_nano(self) -> int | None:
        """Of the tightest budget, beside what this and others hold; None where all its budgets have ended."""
        least: int | None = None
        for pot in self.pots:
            account = pot.account
            if not account.is_counting:
                if pot.is_plain and self.utc_ns < account.until_ns:
                    room = account.limit_nano - pot.spent - pot.held  # as `room`, without a call
                else:
                    room = pot.room(self.utc_ns)
                if least is None or room < least:
                    least = room
        return least if least is None or least > 0 else 0

    @property
    def reset_utc_ns(self) -> int | None:
        """When the tightest budget begins anew; None for never."""
        tightest = self.tightest
        return None if tightest is None else tightest.reset_utc_ns

    def _end(self) -> None:
        self._is_live = False
        for pot in self.pots:
            pot.users -= 1
            if pot.is_plain:
                pot.held -= self.held_nano
            else:
                pot.hold(-self.held_nano, self.utc_ns)
        self.held_nano = 0
        self._accounts.drop(self)


class Accounts:
    """All budgets of a node that are in force, and all holds. Reads no disk and no clock."""

    def __init__(self) -> None:
        self._by_org: dict[str, dict[_Holder, dict[str, Account]]] = {}
        self._over: dict[tuple[str, str | None, str | None], tuple[Account, ...]] = {}
        """Of each caller, the accounts that count for it, the narrowest level first."""
        self._holds: dict[BudgetHold, None] = {}
        self._lapsed: dict[BudgetHold, None] = {}
        """Holds that the sweep took for left behind, in case their requests end after all."""
        self.refusals: Counter[str] = Counter()
        """By level."""

    # ------------------------------------------------------------ what a request does

    def hold(  # noqa: C901 - each request pays for every call in here
        self,
        caller: Caller,
        run_id: str | None,
        nano: int,
        utc_ns: int,
        *,
        request_id: str = "",
    ) -> BudgetHold | None:
        """Set money aside on every budget over a caller; None when there is no budget.

        `utc_ns` is the request's arrival. Raises QuotaExhausted when one of them has no room, and has changed nothing.
        """
        if caller.org not in self._by_org:
            return None
        accounts = self._accounts_over(caller)
        if not accounts:
            return None
        assert nano >= 0, "nobody is paid for asking"
        run = run_of(caller, run_id)
        pots: list[Pot] = []
        least, is_plain = UNLIMITED, True
        for account in accounts:
            pot = account.usual
            if pot is None or not account.usual_since_ns <= utc_ns < account.usual_until_ns:
                pot = account.pot(run, utc_ns)
            if pot.is_plain and not account.is_counting and utc_ns < account.until_ns:
                room = account.limit_nano - pot.spent - pot.held  # as `room`, without a call
            else:
                room, is_plain = pot.room(utc_ns), False
            if room < nano:
                self.refusals[account.budget.level] += 1
                raise refusal(pot, nano, utc_ns)
            if room < least:
                least = room
            pots.append(pot)
        for pot in pots:
            pot.users += 1
            if pot.is_plain:
                pot.held += nano
            else:
                pot.hold(nano, utc_ns)
        hold = BudgetHold(
            *(self, caller, run_id, nano, utc_ns, request_id, utc_ns + HOLD_NS),
            tuple(pots),
            least - nano,
        )
        if not is_plain:
            hold.first_remaining_nano = hold.remaining_nano
        self._holds[hold] = None
        return hold

    def hold_in_turn(
        self,
        caller: Caller,
        run_id: str | None,
        wishes: Sequence[tuple[int, str, int]],
    ) -> Sequence[BudgetHold | None] | None:
        """As `hold`, for each of several requests, of which the time of their arrival, the id, and what they cost at
        most are given. None, and nothing is held, where each has to ask for itself."""
        accounts = self._accounts_over(caller) if caller.org in self._by_org else ()
        if not accounts:
            return [None] * len(wishes)
        first_ns, last_ns = min(wishes)[0], max(wishes)[0]
        nanos = [nano for _, _, nano in wishes]
        assert min(nanos) >= 0, "nobody is paid for asking"
        all_nano, least = sum(nanos), UNLIMITED
        pots: list[Pot] = []
        for account in accounts:
            pot = account.usual
            if pot is None or not pot.is_plain or account.is_counting:
                return None
            if not account.usual_since_ns <= first_ns <= last_ns < account.usual_until_ns:
                return None
            room = account.limit_nano - pot.spent - pot.held  # as `room`, without a call
            if room < all_nano or last_ns >= account.until_ns:
                return None
            if room < least:
                least = room
            pots.append(pot)
        for pot in pots:
            pot.users += len(wishes)
            pot.held += all_nano
        all_pots = tuple(pots)
        holds: list[BudgetHold] = []
        for utc_ns, request_id, nano in wishes:
            least -= nano
            expires_ns = utc_ns + HOLD_NS
            holds.append(
                BudgetHold(
                    *(self, caller, run_id, nano, utc_ns, request_id, expires_ns, all_pots, least)
                )
            )
        self._holds.update(dict.fromkeys(holds))
        return holds

    def charge(self, caller: Caller, run_id: str | None, nano: int, utc_ns: int) -> None:
        """Count what a request cost that held nothing, for budgets that were made meanwhile.

        Negative for what is given back: an entry that could not be stored.
        """
        if caller.org in self._by_org:
            self._spend(self._accounts_over(caller), caller, run_id, nano, utc_ns)

    def correct(self, caller: Caller, run_id: str | None, nano: int, utc_ns: int) -> None:
        """Count what was booked by an entry that is on disk already: a request that was rated again.

        Called when the writer has said so: a budget that is still being summed has it in its sum.
        """
        if caller.org in self._by_org:
            over = self._accounts_over(caller)
            known = [account for account in over if not account.is_counting]
            self._spend(known, caller, run_id, nano, utc_ns)

    def has_budgets(self, org: str) -> bool:
        """Whether an organisation has any, be they over somebody else."""
        return org in self._by_org

    def is_budgeted(self, caller: Caller, run_id: str | None = None) -> bool:
        """Whether a budget is over a caller. A request without a run counts as a run of its own."""
        return caller.org in self._by_org and bool(self._accounts_over(caller))

    def has_room(self, caller: Caller, run_id: str | None, nano: int, utc_ns: int) -> bool:
        """Whether `hold` would not refuse. Changes nothing."""
        if caller.org not in self._by_org:
            return True
        run = run_of(caller, run_id)
        pots = (account.pot(run, utc_ns) for account in self._accounts_over(caller))
        return all(pot.room(utc_ns) >= nano for pot in pots)

    def tightest(self, caller: Caller, run_id: str | None, utc_ns: int) -> Tightest | None:
        """What a request could spend now; None where no budget limits it. Changes nothing."""
        if caller.org not in self._by_org:
            return None
        run = run_of(caller, run_id)
        pots = [account.pot(run, utc_ns) for account in self._accounts_over(caller)]
        return tightest_of(pots, utc_ns)

    # ------------------------------------------------------------ holds

    def live_holds(self) -> tuple[BudgetHold, ...]:
        """Oldest first."""
        return tuple(self._holds)

    def holds_of(self, account: Account) -> list[BudgetHold]:
        """Those that count against one budget, oldest first."""
        return [hold for hold in self._holds if any(pot.account is account for pot in hold.pots)]

    def sweep(self, now_ns: int, is_live: Callable[[BudgetHold], bool]) -> list[BudgetHold]:
        """Free holds that are past their time and whose request `is_live` does not know; which they were.

        One whose request ends after all is charged then.
        """
        lapsed = []
        for hold in [hold for hold in self._holds if hold.expires_ns <= now_ns]:
            if is_live(hold):
                hold.expires_ns = now_ns + HOLD_NS
                continue
            log_event(
                log,
                "budget.hold_left_behind",
                level=logging.ERROR,
                request=hold.request_id,
                org=hold.caller.org,
                held_nano=hold.held_nano,
            )
            hold.void()
            self._lapsed[hold] = None
            lapsed.append(hold)
        while len(self._lapsed) > KEPT_CALLERS:
            del self._lapsed[next(iter(self._lapsed))]
        return lapsed

    def audit(self) -> int:
        """Compare what pots hold with what holds say; how many differ. Sums are kept beside the holds, because a
        request can't add up all others'."""
        held: Counter[Pot] = Counter()
        for hold in self._holds:
            for pot in hold.pots:
                held[pot] += hold.held_nano
        wrong = [
            pot
            for holders in self._by_org.values()
            for accounts in holders.values()
            for account in accounts.values()
            for pot in account.pots()
            if pot.held != held[pot]
        ]
        for pot in wrong:
            name, says = pot.account.budget.id, held[pot]
            log.error("budget.holds_off budget=%s held_nano=%d holds=%d", name, pot.held, says)
        return len(wrong)

    def drop(self, hold: BudgetHold) -> None:
        """It has ended."""
        self._holds.pop(hold, None)

    def settled_late(self, hold: BudgetHold, nano: int) -> None:
        """An end after the end: of no account, unless the sweep had ended it."""
        if hold in self._lapsed:
            del self._lapsed[hold]
            self.charge(hold.caller, hold.run_id, nano, hold.utc_ns)

    def forget_if_idle(self, pot: Pot) -> None:
        if pot.run is not None:
            pot.account.remember(pot)

    # ------------------------------------------------------------ budgets

    def install(self, budget: Budget, now_ns: int, *, is_counting: bool = False) -> Account:
        """Put a budget in force. Holds of its callers count against it from now on, as do settlements.

        With `is_counting` it refuses nobody until `Account.counted` has brought what was used before.
        """
        account = Account(budget, now_ns, is_counting=is_counting)
        holders = self._by_org.setdefault(budget.org, {})
        holders.setdefault((budget.team, budget.key_id), {})[budget.id] = account
        self._over.clear()
        for hold in self._holds:
            caller = hold.caller
            if caller.org == budget.org and budget.is_over(caller.key_id, caller.team):
                pot = account.known_pot(run_of(caller, hold.run_id), hold.utc_ns)
                if pot is not None:
                    hold.join(pot)
        return account

    def remove(self, budget: Budget) -> None:
        """Take a budget out of force. Idempotent."""
        account = self.account(budget)
        if account is None:
            return
        holders, holder = self._by_org[budget.org], (budget.team, budget.key_id)
        del holders[holder][budget.id]
        if not holders[holder]:
            del holders[holder]
        if not holders:
            del self._by_org[budget.org]
        self._over.clear()
        for hold in self._holds:
            hold.part(account)

    def account(self, budget: Budget) -> Account | None:
        """None for a budget that is not in force."""
        accounts = self._by_org.get(budget.org, {}).get((budget.team, budget.key_id), {})
        return accounts.get(budget.id)

    def org_standings(self, utc_ns: int) -> Iterable[tuple[Budget, Standing]]:
        """Of organisations' own budgets: as many as there are organisations, and not as many as keys."""
        for holders in list(self._by_org.values()):
            for account in list(holders.get((None, None), {}).values()):
                if account.budget.level == "org":
                    yield account.budget, account.standing(utc_ns)

    def _spend(
        self,
        accounts: Iterable[Account],
        caller: Caller,
        run_id: str | None,
        nano: int,
        utc_ns: int,
    ) -> None:
        run = run_of(caller, run_id)
        for account in accounts:
            pot = account.known_pot(run, utc_ns)
            if pot is not None:
                pot.spend(nano, utc_ns)

    def _accounts_over(self, caller: Caller) -> tuple[Account, ...]:
        who = (caller.org, caller.team, caller.key_id)
        known = self._over.get(who)
        return self._find(who) if known is None else known

    def _find(self, who: tuple[str, str | None, str | None]) -> tuple[Account, ...]:
        org, team, key_id = who
        holders = self._by_org[org]
        # A set, because a caller may have no team or no key.
        over: set[_Holder] = {(None, None), (team, None), (None, key_id), (team, key_id)}
        found = [account for holder in over for account in holders.get(holder, {}).values()]
        found.sort(key=lambda account: LEVELS.index(account.budget.level))
        if len(self._over) >= KEPT_CALLERS:
            self._over.clear()
        accounts = self._over[who] = tuple(found)
        return accounts


def run_of(caller: Caller, run_id: str | None) -> Run | None:
    """A run is its key's: what another calls the same is another."""
    return None if run_id is None else (caller.key_id, caller.team, run_id)


def tightest_of(pots: Iterable[Pot], utc_ns: int) -> Tightest | None:
    found: Tightest | None = None
    for pot in pots:
        if pot.account.is_counting:
            continue
        room = max(pot.room(utc_ns), 0)
        if found is None or room < found.remaining_nano:
            found = Tightest(pot.account.budget.level, pot.limit, room, pot.resets_ns)
    return found
