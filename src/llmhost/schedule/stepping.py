"""Running one planned step, come what may: as many of its rows as can be computed are, and the time is somebody's.

Steps are idempotent: a row that is run again writes the same keys and values to the same places and draws the same
token. So a step that raised is run again in halves until it is known which rows it can't be done with, and one that
needed too much memory is planned again with fewer tokens. It runs on the engine's thread and knows no other.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from llmhost.core.errors import EngineFailed, OutOfMemory
from llmhost.core.ports import Lane, Runner
from llmhost.core.step import Drawn, Row, Shares, StepResult
from llmhost.schedule.guesser import Guesser
from llmhost.schedule.scheduler import Emission, Scheduler

log = logging.getLogger("llmhost.schedule")

StepObserver = Callable[[StepResult], None]
"""Told of every step, on the engine thread: must be quick. One that raises ends the loop: money reads it."""

GROW_EVERY = 16
"""Good steps after which a token budget that was cut grows by a quarter."""


class TokenBudget:
    """How many tokens a step may have: the configured number, or fewer for a while after one was too many."""

    def __init__(self, full: int) -> None:
        self.full = full
        self.now = full
        self._good_steps = 0

    def cut(self, fed: int) -> bool:
        """A step of `fed` tokens was too large. False when there is no smaller one."""
        self._good_steps = 0
        if fed <= 1:
            return False
        self.now = max(fed // 2, 1)
        return True

    def went_well(self) -> bool:
        """Whether the budget has grown."""
        if self.now >= self.full:
            return False
        self._good_steps += 1
        if self._good_steps < GROW_EVERY:
            return False
        self._good_steps = 0
        self.now = min(self.now + max(self.now // 4, 1), self.full)
        return True


class Stepper:
    """Runs the steps of one model."""

    def __init__(
        self,
        name: str,
        runner: Runner,
        scheduler: Scheduler,
        *,
        lane: Lane,
        guesser: Guesser | None = None,
        on_step: StepObserver | None = None,
    ) -> None:
        self.failures = 0
        """Steps of which nothing could be computed, one after another up to the last one."""
        self.last_error: EngineFailed | None = None
        self.began_ns: int | None = None
        """When the step that runs now took the device, on the lane's clock; None between steps."""
        self.steps = 0
        self.retries = 0
        """Runs that were made again, in part or with fewer tokens."""
        self._name = name
        self._runner = runner
        self._scheduler = scheduler
        self._lane = lane
        self._guesser = guesser
        self._on_step = on_step
        self._budget = TokenBudget(scheduler.limits.max_tokens_per_batch)

    def step(self, rows: Sequence[Row]) -> Sequence[Emission]:
        """Run `rows` and take in what came of them."""
        if (error := self._move()) is not None:
            return self._fail(rows, error, is_whole=True)
        outcome = self._run(rows)
        if type(outcome) is StepResult:
            self.failures = 0
            return self.absorb(outcome)
        return self._find_out(rows, outcome)

    def _find_out(self, rows: Sequence[Row], outcome: StepResult | Exception) -> Sequence[Emission]:
        """Which rows a step can't be done with that went wrong."""
        emissions: Sequence[Emission] = []
        parts = deque([rows])
        effort = 4 * len(rows).bit_length() + 4  # two culprits are found with less
        is_first, has_computed = True, False
        while parts:
            part = parts.popleft()
            if not is_first:
                outcome = self._run(part)
            if isinstance(outcome, StepResult):
                has_computed = True
                emissions = joined(emissions, self.absorb(outcome))
            elif isinstance(outcome, OutOfMemory):
                has_computed = True  # nobody failed, and the next step is smaller
                emissions = joined(emissions, self._cut(part, outcome))
            elif effort > 0 and (len(part) > 1 or is_first):
                effort -= 1
                self.retries += 1
                log.warning("step.split model=%s rows=%d", self._name, len(part), exc_info=outcome)
                parts.extend(halves(part))
            else:
                emissions = joined(emissions, self._fail(part, outcome))
            is_first = False
        self.failures = 0 if has_computed else self.failures + 1
        return emissions

    def _move(self) -> Exception | None:
        """Bring keys and values to where the step expects them. What can't be moved is not known any more."""
        moves = self._scheduler.take_moves()
        if not moves:
            return None
        try:
            with self._lane.turn() as turn:
                self._runner.move_blocks(moves)
        except Exception as error:  # noqa: BLE001 - boundary: a runner may raise anything
            self._scheduler.forget_texts()
            return error
        finally:
            self._scheduler.accounts.pay(turn.ended_ns - turn.started_ns, turn.nano)
        return None

    def _run(self, rows: Sequence[Row]) -> StepResult | Exception:
        error: Exception | None = None
        drawn: list[Drawn] = []
        turn = self._lane.take()  # and not `turn`: a context manager costs as much as ten rows
        self.began_ns = turn.started_ns
        try:
            drawn = self._runner.run(rows)
        except Exception as raised:  # noqa: BLE001 - boundary: a runner may raise anything
            error = raised
        finally:
            self.began_ns = None
            self._lane.give(turn)
        self.steps += 1
        if error is not None:
            self._scheduler.accounts.pay(turn.ended_ns - turn.started_ns, turn.nano)
            return error
        shares = Shares(turn.ended_ns - turn.started_ns, rows)
        return StepResult(rows, drawn, turn.started_ns, turn.ended_ns, shares, turn.nano)

    def absorb(self, result: StepResult) -> Sequence[Emission]:
        """Take a step's tokens into their sequences, and tell whoever learns from it."""
        emissions = self._scheduler.absorb(result)
        if self._guesser is not None:
            self._guesser.learn(result)
        if self._on_step is not None:
            self._on_step(result)
        if self._budget.went_well():
            self._limit()
        return emissions

    def _cut(self, rows: Sequence[Row], error: OutOfMemory) -> list[Emission]:
        """Those who find no place in a smaller step wait again; all are planned anew. One alone can't be cut further
        when it feeds a single token, or a text that must be fed at once."""
        self.retries += 1
        fed = sum(len(row.tokens) for row in rows)
        is_least = len(rows) == 1 and (rows[0].pooling is not None or fed - rows[0].drafts <= 1)
        if (is_least and not rows[0].drafts) or not self._budget.cut(fed):
            return self._fail(rows, error)
        self._limit()
        self._scheduler.unplan(rows)
        late = rows[self._budget.now :] if len(rows) > 1 else []
        self._scheduler.preempt(row.seq_id for row in late)
        log.warning(
            "step.cut model=%s tokens=%d now=%d waiting_again=%d",
            self._name,
            fed,
            self._budget.now,
            len(late),
        )
        return []

    def _limit(self) -> None:
        self._scheduler.limits = replace(
            self._scheduler.limits, max_tokens_per_batch=self._budget.now
        )

    def _fail(
        self, rows: Sequence[Row], error: Exception, *, is_whole: bool = False
    ) -> list[Emission]:
        log.error("step.failed model=%s rows=%d", self._name, len(rows), exc_info=error)
        failure = (
            error
            if isinstance(error, EngineFailed)
            else EngineFailed(f"The model {self._name} failed while it computed an answer.")
        )
        self.last_error = failure
        if is_whole:
            self.failures += 1
        return self._scheduler.fail((row.seq_id for row in rows), failure)


def joined(before: Sequence[Emission], after: Sequence[Emission]) -> Sequence[Emission]:
    """All of them in this order. What is alone stays what it is: a step may say all that it says at once."""
    return [*before, *after] if before and after else before or after


def halves(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """Two parts of nearly one size; of a single row itself, which gets one more chance."""
    if len(rows) == 1:
        return [rows]
    middle = len(rows) // 2
    return [rows[:middle], rows[middle:]]
