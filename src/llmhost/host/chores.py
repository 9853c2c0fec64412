"""What a node does again and again while it runs, beside answering: forget, compare, sweep, try again."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from llmhost.config.schema.state import StateSettings
from llmhost.core.errors import LlmhostError
from llmhost.core.ports import Clock
from llmhost.cost.attribution import TrueCosts
from llmhost.host.books import Books
from llmhost.host.state import Forgets
from llmhost.storage.analytics import Analytics
from llmhost.storage.answers import Answers

log = logging.getLogger("llmhost.host")

KEPT_REQUESTS_DAYS = 90
KEPT_MINUTES_DAYS = 400
"""How long analytics keeps its rows: each request, and the roll-ups by minute."""

DAY_S = 86_400
HOUR_S = 3_600
MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class Chores:
    """Tasks of one event loop. Each runs until it is cancelled."""

    books: Books
    analytics: Analytics
    answers: Answers
    kept: Sequence[Forgets]
    state: StateSettings
    costs: TrueCosts
    clock: Clock
    is_live: Callable[[str], bool]
    """Whether a request, by its id, has been admitted and has not ended."""

    def start(self) -> list["asyncio.Task[None]"]:
        settlements = self.books.settlements
        chores: list[Coroutine[Any, Any, None]] = [
            self._keep_house(),
            self._check_costs(),
            self._check_holds(),
            settlements.keep_trying(),
            settlements.keep_flushing(),
        ]
        return [_started(chore) for chore in chores]

    async def _keep_house(self) -> None:
        """Once a day: forget what need not be kept, and see whether the ledger's sums add up."""
        while True:
            now_ns = self.clock.utc_ns()
            try:
                await self.analytics.forget(
                    requests_before_ns=now_ns - KEPT_REQUESTS_DAYS * DAY_S * 10**9,
                    minutes_before_ns=now_ns - KEPT_MINUTES_DAYS * DAY_S * 10**9,
                )
                await self.answers.forget()
                for keeper in self.kept:
                    await keeper.forget(now_ns - self.state.keep_days * DAY_S * 10**9)
            except LlmhostError as error:
                log.warning("rows.not_forgotten error=%s", error)
            try:
                await asyncio.to_thread(self.books.ledger.check)
            except LlmhostError as error:
                log.warning("ledger.not_checked error=%s", error)
            await asyncio.sleep(DAY_S)

    async def _check_costs(self) -> None:
        """Once an hour: whether devices' time and its cost add up."""
        while True:
            await asyncio.sleep(HOUR_S)
            await self.costs.check()

    async def _check_holds(self) -> None:
        """Once a minute: whether every hold on a budget still has its request."""
        accounts = self.books.budgets.accounts
        while True:
            await asyncio.sleep(MINUTE_S)
            accounts.sweep(self.clock.utc_ns(), lambda hold: self.is_live(hold.request_id))


def _started(chore: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    task = asyncio.create_task(chore)
    task.add_done_callback(_tell_if_it_died)
    return task


def _tell_if_it_died(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (failure := task.exception()) is not None:
        log.error("chore.died name=%s", task.get_coro(), exc_info=failure)
