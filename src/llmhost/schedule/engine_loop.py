"""The thread that drives one loaded model: inbox -> plan -> run -> absorb -> one callback to the HTTP loop.

The HTTP loop submits and cancels; it never touches the scheduler. Everything that a step produced goes back in a
single `call_soon_threadsafe`, so the HTTP loop wakes once per step however many sequences ran.
"""

import asyncio
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from llmhost.core.errors import EngineFailed, Overloaded
from llmhost.core.ports import DeltaSink, EngineLoad, Lane, Runner, Tokenizer
from llmhost.core.request import SequenceSpec
from llmhost.core.step import Row, StepResult, split_exactly, work_units
from llmhost.schedule.scheduler import Emission, Scheduler

log = logging.getLogger("llmhost.schedule")

StepObserver = Callable[[StepResult, EngineLoad], None]
"""Told of every step, on the engine thread: must be quick and must not raise."""

FAILURES_IN_A_ROW = 3
"""Steps that may fail one after another before the loop gives up and its deployment is marked failed."""

Command = Callable[[], list[Emission]]


class EngineLoop:
    """Runs one runner. Implements the EngineClient port."""

    def __init__(
        self,
        name: str,
        runner: Runner,
        scheduler: Scheduler,
        *,
        tokenizer: Tokenizer,
        lane: Lane,
        max_queue: int,
        on_step: StepObserver | None = None,
        on_broken: Callable[[EngineFailed], None] | None = None,
    ) -> None:
        self.name = name
        self._runner = runner
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._lane = lane
        self._max_live = max_queue + scheduler.limits.max_batch_size
        self._on_step = on_step
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._sinks: dict[int, DeltaSink] = {}
        self._ends: deque[float] = deque(maxlen=256)  # when sequences ended, for the drain estimate
        self._wake = threading.Condition()
        self._inbox: deque[Command] = deque()
        self._is_stopping = False
        self._is_draining = False
        self._stopped = asyncio.Event()
        self._failures = 0
        self._load = scheduler.load()
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # ------------------------------------------------------------ HTTP loop's side

    @property
    def live(self) -> int:
        """Sequences submitted and not yet ended."""
        return len(self._sinks)

    def load(self) -> EngineLoad:
        return self._load

    def submit(self, spec: SequenceSpec, sink: DeltaSink) -> int:
        if self._is_stopping or self._is_draining or not self._thread.is_alive():
            raise Overloaded(f"The model {spec.model} is being unloaded.", retry_after_s=1)
        if self.live >= self._max_live:
            raise Overloaded(
                f"{self.live} sequences are running or waiting for {spec.model}, which is all it takes."
                " Try again later.",
                retry_after_s=self.drain_estimate_s(),
            )
        seq_id = next(self._ids)
        self._sinks[seq_id] = sink
        self._post(lambda: self._add(seq_id, spec))
        return seq_id

    def cancel(self, seq_id: int) -> None:
        if seq_id in self._sinks:
            self._post(lambda: self._cancel(seq_id))

    def resize_kv(self, blocks: int) -> None:
        """Hand the runner another KV lease between two steps."""
        self._post(lambda: self._resize(blocks))

    def drain_estimate_s(self) -> float:
        """Seconds until a place frees up, from the measured rate at which sequences end."""
        if len(self._ends) < 2 or self._ends[-1] == self._ends[0]:
            return 1.0
        per_second = (len(self._ends) - 1) / (self._ends[-1] - self._ends[0])
        return max(1.0, (self.live - self._max_live + 1) / per_second)

    async def stop(self, *, drain_s: float = 0.0) -> None:
        """Let what runs end for up to `drain_s`, cancel the rest, then end the thread. Idempotent."""
        self._is_draining = True
        if self._thread.is_alive() and drain_s > 0 and self._sinks:
            await self._drained(drain_s)
        self._is_stopping = True
        self._post(list)
        if self._thread.ident is not None:
            await self._stopped.wait()

    async def _drained(self, drain_s: float) -> None:
        deadline = time.monotonic() + drain_s
        while self._sinks and time.monotonic() < deadline:  # noqa: ASYNC110 - ends are rare here
            await asyncio.sleep(0.02)

    def _deliver(self, emissions: list[Emission]) -> None:
        for seq_id, delta in emissions:
            if delta.finish_reason is None:
                sink = self._sinks.get(seq_id)
            else:
                sink = self._sinks.pop(seq_id, None)
                self._ends.append(time.monotonic())
            if sink is not None:
                sink(delta)

    def _post(self, command: Command) -> None:
        with self._wake:
            self._inbox.append(command)
            self._wake.notify()

    # ------------------------------------------------------------ engine thread's side

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._wait_for_work()
                self._turn()
        finally:
            self._emit(self._abandon())
            self._runner.close()
            self._call_back(self._stopped.set)

    def _wait_for_work(self) -> None:
        with self._wake:
            if self._inbox or self._scheduler.has_work:
                return
            self._load = self._scheduler.load()
            self._scheduler.check()  # the books are audited whenever there is nothing else to do
            while not self._inbox:
                self._wake.wait()

    def _turn(self) -> None:
        emissions = self._take_inbox()
        rows = self._scheduler.plan()
        if rows:
            emissions += self._step(rows)
        self._load = self._scheduler.load()
        self._emit(emissions)

    def _take_inbox(self) -> list[Emission]:
        with self._wake:
            commands = list(self._inbox)
            self._inbox.clear()
        return [emission for command in commands for emission in command()]

    def _step(self, rows: list[Row]) -> list[Emission]:
        try:
            with self._lane.turn() as turn:
                drawn = self._runner.run(rows)
        except Exception as error:  # noqa: BLE001 - boundary: a runner may raise anything
            return self._failed(rows, error)
        self._failures = 0
        shares = split_exactly(turn.ended_ns - turn.started_ns, [work_units(row) for row in rows])
        result = StepResult(rows, drawn, turn.started_ns, turn.ended_ns, shares)
        emissions = self._scheduler.absorb(result)
        if self._on_step is not None:
            self._on_step(result, self._scheduler.load())
        return emissions

    def _failed(self, rows: list[Row], error: Exception) -> list[Emission]:
        """Only the sequences of this step fail; a loop that fails again and again gives up."""
        self._failures += 1
        log.error("step.failed model=%s rows=%d", self.name, len(rows), exc_info=error)
        failure = (
            error
            if isinstance(error, EngineFailed)
            else EngineFailed(f"The model {self.name} failed while it computed an answer.")
        )
        if self._failures >= FAILURES_IN_A_ROW:
            self._is_stopping = True
            if self._on_broken is not None:
                on_broken = self._on_broken
                self._call_back(lambda: on_broken(failure))
        return self._scheduler.fail((row.seq_id for row in rows), failure)

    def _add(self, seq_id: int, spec: SequenceSpec) -> list[Emission]:
        self._scheduler.add(seq_id, spec, self._tokenizer.watch(spec.stop))
        return []

    def _cancel(self, seq_id: int) -> list[Emission]:
        emission = self._scheduler.cancel(seq_id)
        return [] if emission is None else [emission]

    def _resize(self, blocks: int) -> list[Emission]:
        self._scheduler.resize_kv(blocks)
        self._runner.set_kv_blocks(blocks)
        return []

    def _abandon(self) -> list[Emission]:
        """At the end of the thread: whatever is still here ends, so that no stream hangs."""
        leftovers = self._take_inbox()
        error = EngineFailed(f"The model {self.name} was stopped before the answer was complete.")
        return leftovers + self._scheduler.fail(self._scheduler.ids(), error)

    def _emit(self, emissions: list[Emission]) -> None:
        if emissions:
            self._call_back(lambda: self._deliver(emissions))

    def _call_back(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the HTTP loop is gone: nobody is left to tell
            log.debug("engine.loop_gone model=%s", self.name)
