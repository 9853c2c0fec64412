"""What budgets cost a request, in CPU: `python tests/bench/bench_accounts.py`.

Each line is a hold, one look at what remains, and a settlement.
"""

import platform
import sys
import time
from collections.abc import Callable

from llmhost.core.caller import Caller
from llmhost.tenants.accounts import Accounts
from llmhost.tenants.balance import Grant
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import Period

NOW_NS = 1_800_000_000 * 10**9
CALLER = Caller(key_id="k", org="acme", team="search")
PLENTY_NANO = 10**18
ROUNDS, TIMES = 5, 20_000


def accounts(*budgets: Budget) -> Accounts:
    made = Accounts()
    for budget in budgets:
        made.install(budget, NOW_NS)
    return made


def budget(name: str, period: Period = Period.MONTH, **whose: object) -> Budget:
    return Budget(
        id=name,
        org="acme",
        period=period,
        zone="Europe/Berlin",
        limit_nano=PLENTY_NANO,
        **whose,  # type: ignore[arg-type]
    )


def with_credits(count: int) -> Accounts:
    made = accounts()
    account = made.install(budget("balance", Period.BALANCE), NOW_NS)
    account.grant(
        Grant(str(number), PLENTY_NANO, account.balance.cut(NOW_NS - count * 10**9))
        for number in range(count)
    )
    return made


def busy(made: Accounts, holds: int) -> Accounts:
    for _ in range(holds):
        made.hold(CALLER, "other", 100, NOW_NS)
    return made


def request(made: Accounts, run_id: str | None = None) -> Callable[[], None]:
    def spend() -> None:
        hold = made.hold(CALLER, run_id, 1_000, NOW_NS)
        if hold is not None:
            _ = hold.remaining_nano
            hold.settle(700)

    return spend


def measure(name: str, act: Callable[[], None]) -> None:
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time_ns()
        for _ in range(TIMES):
            act()
        rounds.append((time.process_time_ns() - began) / TIMES / 1_000)
    best, worst = min(rounds), max(rounds)
    sys.stdout.write(
        f"{name:<44} {sorted(rounds)[ROUNDS // 2]:6.2f} us  ({best:.2f} to {worst:.2f})\n"
    )


LEVELS = (budget("org"), budget("team", team="search"), budget("key", key_id="k"))
PER_RUN = budget("run", Period.TOTAL, is_per_run=True)


def main() -> None:
    sys.stdout.write(f"CPython {platform.python_version()}\n")
    measure("no budget", request(accounts()))
    measure("one budget", request(accounts(budget("org"))))
    measure("three levels", request(accounts(*LEVELS)))
    measure("three levels, 500 other holds", request(busy(accounts(*LEVELS), 500)))
    measure("three levels and each run", request(accounts(*LEVELS, PER_RUN), "r"))
    measure("a balance of 10 credits", request(with_credits(10)))
    measure("a balance of 100 credits", request(with_credits(100)))
    made = accounts(*LEVELS)
    hold = made.hold(CALLER, None, 1, NOW_NS)
    assert hold is not None
    measure("raising a hold on three levels", lambda: hold.raise_by(1) and None)


if __name__ == "__main__":
    main()
