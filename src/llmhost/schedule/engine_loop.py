"""The thread that drives one loaded model: inbox -> plan -> run -> absorb -> one callback to the HTTP loop.

The HTTP loop submits and cancels; it never touches the scheduler. Everything that a step produced goes back in a
single `call_soon_threadsafe`, so the HTTP loop wakes once per step however many sequences ran.
"""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import cast

from msgspec import structs

from llmhost.core.errors import EngineFailed, LlmhostError, Overloaded
from llmhost.core.output import Delta, FinishReason
from llmhost.core.ports import (
    DeltaSink,
    EngineLoad,
    InterruptibleRunner,
    Lane,
    Runner,
    Tokenizer,
)
from llmhost.core.sequence import SequenceSpec
from llmhost.core.step import Row
from llmhost.schedule.audience import Audience
from llmhost.schedule.bed import Bed
from llmhost.schedule.flights import Flights, GuessRhythm
from llmhost.schedule.guesser import Guesser
from llmhost.schedule.inbox import Arrival, AtRest, Inbox
from llmhost.schedule.interpreter import Hurry
from llmhost.schedule.scheduler import Emission, Scheduler
from llmhost.schedule.sequence import Sequence
from llmhost.schedule.stepping import StepObserver, Stepper, joined
from llmhost.schedule.watchdog import Watchdog

log = logging.getLogger("llmhost.schedule")

FAILURES_IN_A_ROW = 3
"""Steps that may fail one after another before the loop gives up and its deployment is marked failed."""

WATCH_S = 1.0
HUNG_RETRY_S = 10.0
"""When to ask again for a model whose step hangs."""

QUIET_S = 1.0
"""Idle time after which the KV books are audited: not between two requests, where it would cost the second one."""

GATHER_MOST_S = 0.05
"""A first step waits for more prompts no longer than this, however steadily they come."""


class EngineLoop:
    """Runs one runner. Implements the EngineClient port."""

    def __init__(  # noqa: PLR0913 - all that a loop drives, and whom it tells
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
        now_ns: Callable[[], int] = time.monotonic_ns,
        guesser: Guesser | None = None,
        step_timeout_s: float = 120.0,
    ) -> None:
        self.name = name
        self._runner = runner
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._stepper = Stepper(
            name, runner, scheduler, lane=lane, guesser=guesser, on_step=on_step
        )
        self._flights = Flights(runner, scheduler, self._stepper, lane)
        self._rhythm = GuessRhythm()
        self._bed = Bed(runner, scheduler, guesser)
        self._lane = lane
        self._max_live = max_queue + scheduler.limits.max_batch_size
        self._on_broken = on_broken
        self._now_ns = now_ns
        """The clock of arrivals and deadlines."""
        self._guesser = guesser
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._audience = Audience(
            name, batch=scheduler.limits.max_batch_size, most_live=self._max_live
        )
        self._calls: set[asyncio.Future[None]] = set()
        self._inbox = Inbox(self._loop)
        self._hurry = Hurry(is_ever=runner.facts.reenters)
        self._is_started = self._is_stopping = self._is_draining = False
        self._stopped = asyncio.Event()
        self._load: EngineLoad | None = None
        """Of an engine that has ended."""
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._watchdog = Watchdog(
            name, self._stepper, self._thread, timeout_s=step_timeout_s, now_ns=now_ns
        )

    def start(self) -> None:
        self._thread.start()
        self._is_started = True
        self._watch()

    # ------------------------------------------------------------ HTTP loop's side

    @property
    def live(self) -> int:
        """Sequences submitted and not yet ended."""
        return len(self._audience.entries)

    def load(self) -> EngineLoad:
        # Counts that the engine's thread goes on changing: each is right for itself, and all are advice. To note them
        # after every step would cost more than half of what the scheduler takes for one token.
        load = self._load or self._scheduler.load()
        hung_s = self._watchdog.running_s
        return load if hung_s is None else structs.replace(load, hung_s=hung_s)

    def submit(self, spec: SequenceSpec, sink: DeltaSink) -> int:
        # A thread that has ended says first that it is stopping, and `is_alive` takes as long as all the rest.
        if self._is_stopping or self._is_draining or not self._is_started:
            raise Overloaded(
                f"The model {spec.model} is being unloaded or put to sleep.", retry_after_s=1
            )
        if self._stepper.began_ns is not None and self._watchdog.running_s is not None:
            raise Overloaded(
                f"The model {spec.model} hangs in a step. Its operator knows; try again later.",
                retry_after_s=HUNG_RETRY_S,
            )
        if len(self._audience.entries) >= self._max_live:
            raise Overloaded(
                f"{self.live} sequences are running or waiting for {spec.model}, which is all it takes."
                " Try again later.",
                retry_after_s=self._audience.wait_s(),
            )
        seq_id = next(self._ids)
        self._audience.join(seq_id, spec, sink)
        self._inbox.post((seq_id, spec))
        return seq_id

    def cancel(self, seq_id: int) -> None:
        if seq_id in self._audience.entries:
            self._inbox.post(lambda: self._cancel(seq_id))

    def allow(self, seq_id: int, held_tokens: int, *, is_final: bool = False) -> None:
        """So many of a sequence's tokens are paid for. Wakes the engine, if all that it runs waits for that."""
        if seq_id in self._audience.entries:
            self._inbox.post(lambda: self._allow(seq_id, held_tokens, is_final))

    def resize_kv(self, blocks: int) -> None:
        """Hand the runner another KV lease between two steps."""
        self._inbox.post(AtRest(lambda: self._resize(blocks)))

    async def call(self, act: Callable[[], None]) -> None:
        """Have the engine's thread do `act` between two steps. Raises what it raises, or EngineFailed at its end."""
        if self._is_stopping or not self._thread.is_alive():
            raise self._cut_short()
        done: asyncio.Future[None] = self._loop.create_future()
        self._calls.add(done)
        try:
            self._inbox.post(AtRest(lambda: self._do(act, done)))
            await done
        finally:
            self._calls.discard(done)

    async def sleep(self, *, drain_s: float = 0.0) -> None:
        """Let what runs end for up to `drain_s`, cut the rest, then give back what is held of the device.

        Nothing is let in until `wake`. Raises what the runner raises, and then it goes on as before.
        """
        self._is_draining = True
        try:
            if self._audience.entries:
                await self._drained(drain_s)
            if self._audience.entries:
                self._inbox.post(AtRest(self._cut_all))
            await self.call(self._bed.lie_down)
        except BaseException:
            self._is_draining = self._is_stopping
            raise

    async def wake(self) -> None:
        """Be as before `sleep`, but for the prefix cache, which is empty. Raises OutOfMemory, and sleeps on."""
        await self.call(self._bed.get_up)
        self._is_draining = self._is_stopping

    async def stop(self, *, drain_s: float = 0.0) -> None:
        """Let what runs end for up to `drain_s`, cancel the rest, then end the thread. Idempotent."""
        self._is_draining = True
        if self._thread.is_alive() and drain_s > 0 and self._audience.entries:
            await self._drained(drain_s)
        self._is_stopping = True
        if self._runner.facts.can_be_interrupted and self._audience.entries:
            cast(InterruptibleRunner, self._runner).interrupt()
        self._inbox.post(list)
        if self._thread.ident is None:
            self._close()
        elif (
            self._loop.is_closed()
        ):  # called on a later loop: nothing can be heard on ours any more
            await asyncio.to_thread(self._thread.join)
        else:
            await self._stopped.wait()

    async def _drained(self, drain_s: float) -> None:
        deadline = time.monotonic() + drain_s
        while self._audience.entries and time.monotonic() < deadline:  # noqa: ASYNC110 - ends are rare here
            await asyncio.sleep(0.02)

    def _ended(self) -> None:
        """The thread's last word. Streams that it knew nothing of, or lost in a crash, end here."""
        error = self._cut_short()
        self._audience.leave(error)
        for done in self._calls:
            _settle(done, error)
        self._stopped.set()

    def _watch(self) -> None:
        """Once a second, for as long as the thread runs."""
        self._watchdog.look()
        if not self._stopped.is_set():
            self._loop.call_later(WATCH_S, self._watch)

    # ------------------------------------------------------------ engine thread's side

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._wait_for_work()
                self._gather()
                self._turn()
        except BaseException as error:
            log.critical("engine.broken model=%s", self.name, exc_info=error)
            self._give_up(EngineFailed(f"The engine of {self.name} broke down."))
        finally:
            self._is_stopping = True
            self._quietly(lambda: self._emit(self._flights.land_all()))
            self._quietly(lambda: self._emit(self._abandon()))
            self._load = self._scheduler.load()  # what is read of an engine that has ended
            self._quietly(self._close)
            self._hurry.set(False)
            self._call_back(self._ended)

    def _wait_for_work(self) -> None:
        """Sleep until there is some. Once it has been quiet for a moment, the books are audited.

        While whoever is here waits for payment, it looks up from time to time: a deadline may have come.
        """
        if self._inbox.has_any or self._has_work():
            self._hurry.set(True)
            return
        self._hurry.set(False)
        is_audited = False
        while not self._inbox.wait(self._has_work, None if is_audited else self._quiet_s()):
            if self._scheduler.has_work:
                break
            self._scheduler.check()
            is_audited = True
        self._hurry.set(True)

    def _gather(self) -> None:
        """Let the prompts that come together run together."""
        pause_s = self._runner.facts.gather_s
        if pause_s and not self._scheduler.has_work:
            self._inbox.gather(pause_s, GATHER_MOST_S)

    def _has_work(self) -> bool:
        is_workable = self._scheduler.has_work and not self._scheduler.is_held_up
        return is_workable or self._flights.is_up

    def _quiet_s(self) -> float:
        deadline_ns = self._scheduler.next_deadline_ns
        if deadline_ns is None or not self._scheduler.has_work:
            return QUIET_S
        return min(max((deadline_ns - self._now_ns()) / 1e9, 0.0), QUIET_S)

    def _turn(self) -> None:
        ended = self._take_inbox()
        now_ns = self._now_ns()
        ended += self._scheduler.expire(now_ns)
        emissions = joined(ended, self._go_on(now_ns))
        if self._guesser is not None:
            self._guesser.forget_ended(emissions)
        self._emit(emissions)

    def _go_on(self, now_ns: int) -> Seq[Emission]:
        """Have the device do a step. Where it can, the one behind it is begun before this one is looked at."""
        if not self._flights.is_up:
            self._guess()
            rows = self._scheduler.plan(now_ns)
            if not rows:
                return []
            if not self._flights.may_launch(rows):
                return self._step(rows)
            if not self._flights.launch(rows):
                return []  # planned again in the next turn
        if self._may_go_ahead() and (ahead := self._scheduler.plan_ahead(now_ns)):
            self._rhythm.went_ahead()
            self._flights.launch(ahead)
        return self._flights.land()

    def _guess(self) -> None:
        if self._guesser is not None:
            self._rhythm.guessed(has_guesses=self._guesser.guess(self._scheduler))

    def _may_go_ahead(self) -> bool:
        """Not when another model waits for the device, or it is time to guess."""
        if self._lane.is_wanted or self._is_stopping:
            return False
        may_guess = self._guesser is not None and self._guesser.may_guess(self._scheduler)
        return not (may_guess and self._rhythm.is_due)

    def _take_inbox(self) -> list[Emission]:
        """Do what came, in order; those that come one after the other are let in together."""
        emissions: list[Emission] = []
        arrivals: list[Arrival] = []
        for command in self._inbox.take():
            if isinstance(command, tuple):
                arrivals.append(command)
                continue
            if arrivals:
                emissions += self._let_in(arrivals)
                arrivals = []
            if isinstance(command, AtRest):
                emissions += self._flights.land_all()
                emissions += command.act()
            else:
                emissions += command()
        return emissions + self._let_in(arrivals) if arrivals else emissions

    def _step(self, rows: Seq[Row]) -> Seq[Emission]:
        """A model of whose steps nothing can be computed any more gives up."""
        emissions = self._stepper.step(rows)
        if self._stepper.failures >= FAILURES_IN_A_ROW:
            assert self._stepper.last_error is not None
            self._give_up(self._stepper.last_error)
        return emissions

    def _give_up(self, failure: EngineFailed) -> None:
        self._is_stopping = True
        if self._on_broken is not None:
            on_broken = self._on_broken
            self._call_back(lambda: on_broken(failure))

    def _let_in(self, arrivals: Seq[Arrival]) -> list[Emission]:
        emissions: list[Emission] = []
        started: list[Sequence] = []
        tokenizer, start = self._tokenizer, Sequence.start
        for seq_id, spec in arrivals:
            try:
                watch, grammar = tokenizer.watch(spec.stop, spec.shown), None
                if spec.grammar is not None:
                    grammar = tokenizer.grammar(spec.grammar, spec.prompt)
                started.append(start(seq_id, spec, watch, grammar))
            except Exception as error:  # boundary: what one caller brought must not end the others
                log.exception("sequence.refused model=%s request=%s", self.name, spec.request_id)
                failure = error if isinstance(error, LlmhostError) else self._cut_short()
                last = Delta(spec.index, finish_reason=FinishReason.ERROR, error=failure)
                emissions.append((seq_id, last))
        return emissions + self._scheduler.let_in(started)

    def _cancel(self, seq_id: int) -> list[Emission]:
        return _some(self._scheduler.cancel(seq_id))

    def _allow(self, seq_id: int, held_tokens: int, is_final: bool) -> list[Emission]:
        return _some(self._scheduler.allow(seq_id, held_tokens, is_final=is_final))

    def _resize(self, blocks: int) -> list[Emission]:
        """The runner grows before the books do and shrinks after them: no book shows a block that isn't there."""
        is_growth = blocks > self._scheduler.books.total
        emissions = [] if is_growth else self._scheduler.resize_kv(blocks)
        try:
            self._runner.set_kv_blocks(blocks)
        except Exception:  # boundary: a runner may raise anything, and keeps the blocks that it had
            log.exception("kv.resize_failed model=%s blocks=%d", self.name, blocks)
            return emissions
        return self._scheduler.resize_kv(blocks) if is_growth else emissions

    def _do(self, act: Callable[[], None], done: "asyncio.Future[None]") -> list[Emission]:
        failure: Exception | None = None
        try:
            act()
        except Exception as error:  # noqa: BLE001 - boundary: raised by whoever waits
            failure = error
        self._call_back(lambda: _settle(done, failure))
        return []

    def _cut_all(self) -> list[Emission]:
        """Whatever runs ends as a failure of the server's, which nobody pays for, and not as if its caller had left."""
        error = EngineFailed(
            f"The model {self.name} was put to sleep before the answer was complete."
        )
        return self._scheduler.fail(self._scheduler.ids(), error)

    def _abandon(self) -> list[Emission]:
        """At the end of the thread: whatever is still here ends, so that no stream hangs."""
        leftovers = self._take_inbox()
        return leftovers + self._scheduler.fail(self._scheduler.ids(), self._cut_short())

    def _cut_short(self) -> EngineFailed:
        return EngineFailed(f"The model {self.name} was stopped before the answer was complete.")

    def _close(self) -> None:
        try:
            self._runner.close()
        finally:
            if self._guesser is not None:
                self._guesser.close()

    def _quietly(self, act: Callable[[], None]) -> None:
        """At the end of the thread every act gets its turn, whatever the one before it did."""
        try:
            act()
        except Exception:  # boundary: the thread is ending and its streams still have to be told
            log.exception("engine.end_failed model=%s", self.name)

    def _emit(self, emissions: Seq[Emission]) -> None:
        if emissions:
            self._call_back(lambda: self._audience.hear(emissions))

    def _call_back(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the HTTP loop is gone: nobody is left to tell
            self._is_stopping = True
            log.debug("engine.loop_gone model=%s", self.name)


def _settle(done: "asyncio.Future[None]", failure: Exception | None) -> None:
    if done.done():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)


def _some(emission: Emission | None) -> list[Emission]:
    return [] if emission is None else [emission]
