"""Overlap: the next step is handed to the device before anybody has looked at what the last one drew.

So the device does not wait for Python. A step is planned ahead only when nothing but the device must know the tokens
in between (`Scheduler.plan_ahead`); a sequence that turns out to have ended runs one step too many, which is the
operator's. What goes wrong in the air is planned again and run step by step (`stepping.py`), where it is found out
which rows it can't be done with. It runs on the engine's thread.
"""

import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, cast

from llmhost.core.ports import AheadRunner, Flight, Lane, Runner, Turn
from llmhost.core.step import Drawn, Row, Shares, StepResult
from llmhost.schedule.scheduler import Emission, Scheduler
from llmhost.schedule.stepping import Stepper

log = logging.getLogger("llmhost.schedule")

STEPS_ON_FOOT = 16
"""Steps that are run one by one after something went wrong in the air."""
LEAST_AHEAD, MOST_AHEAD = 4, 64
"""Steps between two tries to guess what sequences say next: more after each try that gave nothing."""


class _InTheAir(NamedTuple):
    rows: Sequence[Row]
    flight: Flight


class Flights:
    """The steps of one model that are on the device, two at most."""

    def __init__(self, runner: Runner, scheduler: Scheduler, stepper: Stepper, lane: Lane) -> None:
        self.wasted_steps = 0
        """Launched, and planned again."""
        self.waited_ns = 0
        """Time in which this thread had nothing to do but to wait for the device."""
        self._runner = cast(AheadRunner, runner) if runner.facts.runs_ahead else None
        self._scheduler = scheduler
        self._stepper = stepper
        self._lane = lane
        self._up: deque[_InTheAir] = deque()
        self._turn = Turn()
        self._on_foot = 0

    @property
    def is_up(self) -> bool:
        """A step is on the device."""
        return bool(self._up)

    def may_launch(self, rows: Sequence[Row]) -> bool:
        if self._runner is None:
            return False
        if self._on_foot:
            self._on_foot -= 1
            return False
        return all(_flies(row) for row in rows)

    def launch(self, rows: Sequence[Row]) -> bool:
        """Hand a step to the device. False when that fails: it is to be run another way, or planned again."""
        assert self._runner is not None, "this runner can't be given a step ahead"
        is_first = not self._up
        if is_first:
            self._turn = self._lane.take()
            self._stepper.began_ns = self._turn.started_ns
        moves = self._scheduler.take_moves()
        try:
            if moves:
                self._runner.move_blocks(moves)
            flight = self._runner.launch(rows)
            if is_first:
                flight.draw()
        except Exception as error:  # noqa: BLE001 - boundary: a runner may raise anything
            if moves:  # what was to come from host memory is not there
                self._scheduler.forget_texts()
                self._scheduler.preempt(row.seq_id for row in rows)
            self._stumble(rows, error)
            if is_first:
                self._give()
                self._pay()
            return False
        self._up.append(_InTheAir(rows, flight))
        return True

    def land(self) -> Sequence[Emission]:
        """Wait for the step that was launched first, and take in what came of it."""
        rows, flight = self._up.popleft()
        error: Exception | None = None
        drawn: list[Drawn] = []
        began_ns = time.monotonic_ns()
        try:
            drawn = flight.land()
        except Exception as raised:  # noqa: BLE001 - boundary: a runner may raise anything
            error = raised
        self.waited_ns += time.monotonic_ns() - began_ns
        self._stepper.steps += 1
        if error is not None:
            return self._crash(rows, error)
        turn = self._turn
        if self._up:
            self._turn = self._lane.split(turn)
            self._stepper.began_ns = self._turn.started_ns
        else:
            self._give()
        shares = Shares(turn.ended_ns - turn.started_ns, rows)
        self._stepper.failures = 0
        emissions = self._stepper.absorb(
            StepResult(rows, drawn, turn.started_ns, turn.ended_ns, shares, turn.nano)
        )
        self._draw()
        return emissions

    def _draw(self) -> None:
        """What the step in the air draws may depend on what was just taken in."""
        for rows, flight in self._up:
            try:
                flight.draw()
            except Exception as error:  # noqa: BLE001 - boundary: a runner may raise anything
                self._up.clear()
                self._crash(rows, error)
                return

    def land_all(self) -> list[Emission]:
        emissions: list[Emission] = []
        while self._up:
            emissions += self.land()
        return emissions

    def _crash(self, rows: Sequence[Row], error: Exception) -> list[Emission]:
        """Nothing of the step is known, and the one behind it went on from there."""
        for later, flight in self._up:
            try:
                flight.land()
            except Exception as raised:
                log.debug("flight.lost", exc_info=raised)
            self._stumble(later, error)
        self._stumble(rows, error)
        self._up.clear()
        self._give()
        self._pay()
        return []

    def _pay(self) -> None:
        """Nobody got anything for the last turn."""
        turn = self._turn
        self._scheduler.accounts.pay(turn.ended_ns - turn.started_ns, turn.nano)

    def _stumble(self, rows: Sequence[Row], error: Exception) -> None:
        log.warning("flight.failed rows=%d", len(rows), exc_info=error)
        self._scheduler.unplan(rows)
        self.wasted_steps += 1
        self._on_foot = STEPS_ON_FOOT

    def _give(self) -> None:
        self._lane.give(self._turn)
        self._stepper.began_ns = None


def _flies(row: Row) -> bool:
    """The runner can begin with it and have nothing said before it lands."""
    return (
        row.drafts == 0 and row.adapter is None and row.pooling is None and row.sampling.goes_ahead
    )


class GuessRhythm:
    """When to stop planning ahead, so that somebody can guess: for that all tokens must be known."""

    def __init__(self) -> None:
        self._pause = LEAST_AHEAD
        self._left = 0

    @property
    def is_due(self) -> bool:
        return self._left <= 0

    def went_ahead(self) -> None:
        self._left -= 1

    def guessed(self, *, has_guesses: bool) -> None:
        self._pause = LEAST_AHEAD if has_guesses else min(2 * self._pause, MOST_AHEAD)
        self._left = 0 if has_guesses else self._pause
