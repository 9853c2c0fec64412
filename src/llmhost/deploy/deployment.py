"""One model's life: absent > loading > ready > draining > absent, or failed. It is the single writer of its state.

From ready it can also go to sleep and be woken: draining > asleep > waking > ready, with nothing read again.

Callers ask (`ensure_ready`, `sleep`, `unload`); it decides in its own turn, so a request that arrives during a drain
gets a fresh load, and many that arrive during a load share it.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import Any, Protocol

from llmhost.core.errors import (
    ConfigError,
    Conflict,
    DoesNotFit,
    EngineFailed,
    LlmhostError,
    ModelUnavailable,
    OutOfMemory,
)
from llmhost.core.events import DeploymentChanged
from llmhost.core.ports import Clock
from llmhost.deploy.catalogue import ModelEntry
from llmhost.deploy.off_loop import shutting_down
from llmhost.deploy.replica import Replica
from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.deploy")


RETRY_AFTER_S = 5.0
"""How long requests are answered with a failed load's reason before one of them tries again."""


WITHOUT_CURE = (DoesNotFit, ConfigError)
"""Failed loads that waiting does not heal."""


class State(StrEnum):
    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    ASLEEP = "asleep"
    WAKING = "waking"
    FAILED = "failed"


class Effects(Protocol):
    """What a deployment can have done; each act returns when it is complete."""

    async def load(
        self, entry: ModelEntry, on_broken: Callable[[LlmhostError], None]
    ) -> Replica: ...

    async def unload(self, replica: Replica, *, drain_s: float) -> None: ...

    def check_sleep(self, replica: Replica) -> None: ...

    async def sleep(self, replica: Replica, *, drain_s: float) -> int: ...

    async def wake(self, replica: Replica) -> None: ...


class Deployment:
    """The owner of one model's replicas."""

    def __init__(
        self,
        entry: ModelEntry,
        effects: Effects,
        clock: Clock,
        on_change: Callable[[DeploymentChanged], None],
    ) -> None:
        self.entry = entry
        self.state = State.ABSENT
        self.reason = "declared"
        self.replicas: tuple[Replica, ...] = ()
        """Those that requests can be routed to."""
        self.asleep: Replica | None = None
        """The one that waits in host memory."""
        self._effects = effects
        self._clock = clock
        self._on_change = on_change
        self._turn = asyncio.Lock()
        self._load: asyncio.Task[None] | None = None
        self._acts: set[asyncio.Task[None]] = set()  # asyncio itself keeps no task alive
        self._is_loadable = True  # until the node ends
        self._failure: tuple[LlmhostError, int] | None = None  # of the last load, and when
        self.took_s: float | None = None
        """How long the last change of state took."""

    async def ensure_ready(self, reason: str = "request") -> None:
        """Come back once requests can run, whatever the state was when asked. Raises why it can't load."""
        if self.state is State.READY:
            return
        if not self._is_loadable:
            raise shutting_down()
        if self._load is None or self._load.done():
            self._raise_recent_failure(reason)
            self._load = asyncio.create_task(self._become_ready(reason))
        load = self._load
        try:
            await asyncio.shield(load)  # one caller leaving must not stop it for the rest
        except asyncio.CancelledError:
            if load.cancelled() and not _is_leaving():
                raise shutting_down() from None
            raise

    def stop_loading(self) -> None:
        """Give up a load that is under way, and begin no other. Whoever waits for it is refused."""
        self._is_loadable = False
        if self._load is not None:
            self._load.cancel()

    async def unload(self, *, drain_s: float, reason: str) -> None:
        """Let running answers end, then give everything back. Idempotent.

        Carried to its end even when whoever asked is cancelled: half an unload would keep its memory for ever.
        """
        await asyncio.shield(self._start(self._become_absent(drain_s, reason)))

    async def sleep(self, *, drain_s: float, reason: str) -> None:
        """Let running answers end, then have the weights wait in host memory. Idempotent; the next request wakes it.

        Raises Conflict where it is not loaded or can't sleep, DoesNotFit where the host has no room for it.
        """
        await asyncio.shield(self._start(self._become_asleep(drain_s, reason)))

    async def wake(self, reason: str) -> None:
        """Come back once requests can run. Raises Conflict when it is neither asleep nor ready."""
        if self.state not in (State.ASLEEP, State.WAKING, State.READY):
            raise Conflict(
                f"The model {self.entry.ref} is {self.state}, not asleep. Load it instead."
            )
        await self.ensure_ready(reason)

    @property
    def held(self) -> Replica | None:
        """What is in memory of it, awake or asleep."""
        return self.replicas[0] if self.replicas else self.asleep

    def least_busy(self) -> Replica:
        """The replica with the fewest live sequences. Raises ModelUnavailable when none is loaded."""
        if not self.replicas:
            raise ModelUnavailable(
                f"The model {self.entry.ref} is {self.state}: {self.reason}", retry_after_s=1
            )
        return min(self.replicas, key=lambda replica: replica.engine.live)

    def _raise_recent_failure(self, reason: str) -> None:
        """A model that has just failed is not tried again by every request; an operator's `load` always tries."""
        if self._failure is None or reason != "request":
            return
        error, failed_ns = self._failure
        since_s = (self._clock.monotonic_ns() - failed_ns) / 1e9
        if since_s < RETRY_AFTER_S:
            raise _again(error, RETRY_AFTER_S - since_s)

    async def _become_ready(self, reason: str) -> None:
        async with self._turn:  # waits out a drain in flight
            if self.state is State.READY:
                return
            if self.asleep is not None:
                await self._wake_up(self.asleep, reason)
                return
            started_ns = self._clock.monotonic_ns()
            self._change(State.LOADING, reason)
            try:
                replica = await self._effects.load(self.entry, self._broke)
            except asyncio.CancelledError:
                self._change(State.ABSENT, "shutdown", started_ns=started_ns)
                raise
            except BaseException as error:
                known = error if isinstance(error, LlmhostError) else ModelUnavailable(repr(error))
                self._failure = _again(known, RETRY_AFTER_S), self._clock.monotonic_ns()
                self._change(State.FAILED, known.message, started_ns=started_ns)
                raise
            self._failure = None
            self.replicas = (replica,)
            self._change(State.READY, reason, started_ns=started_ns, replica=replica)

    async def _wake_up(self, replica: Replica, reason: str) -> None:
        """Without room it sleeps on; after any other failure it is given up, and the next request loads it."""
        started_ns = self._clock.monotonic_ns()
        self._change(State.WAKING, reason)
        try:
            await self._effects.wake(replica)
        except (DoesNotFit, OutOfMemory, asyncio.CancelledError) as error:
            self._change(State.ASLEEP, str(error) or "shutdown", started_ns=started_ns)
            raise
        except BaseException as error:
            known = error if isinstance(error, LlmhostError) else ModelUnavailable(repr(error))
            self._change(State.FAILED, known.message, started_ns=started_ns)
            await self._give_back(0.0)
            raise
        self.replicas, self.asleep = (replica,), None
        self._change(State.READY, reason, started_ns=started_ns, replica=replica)

    async def _become_asleep(self, drain_s: float, reason: str) -> None:
        async with self._turn:
            if self.state is State.ASLEEP:
                return
            if self.state is not State.READY:
                raise Conflict(
                    f"The model {self.entry.ref} is {self.state}; only a loaded model can be put to sleep."
                )
            (replica,) = self.replicas
            self._effects.check_sleep(replica)
            self._change(State.DRAINING, reason)
            self.replicas = ()
            started_ns = self._clock.monotonic_ns()
            try:
                size_bytes = await self._effects.sleep(replica, drain_s=drain_s)
            except EngineFailed as error:  # it broke down while it drained
                self.replicas = (replica,)
                self._change(State.FAILED, error.message)
                await self._give_back(0.0)
                raise
            except BaseException as error:
                self.replicas = (replica,)
                self._change(State.READY, str(error))
                raise
            self.asleep = replica
            self._change(State.ASLEEP, reason, started_ns=started_ns, size_bytes=size_bytes)

    async def _become_absent(self, drain_s: float, reason: str) -> None:
        async with self._turn:
            if self.state not in (State.READY, State.ASLEEP):
                return
            self._change(State.DRAINING, reason)
            started_ns = self._clock.monotonic_ns()
            await self._give_back(drain_s)
            self._change(State.ABSENT, reason, started_ns=started_ns)

    def _broke(self, error: LlmhostError) -> None:
        """The engine loop gave up: give its memory back, so that the next request loads afresh."""
        if self.state is State.READY:
            self._change(State.FAILED, error.message)
            self._start(self._clear_away())

    async def _clear_away(self) -> None:
        async with self._turn:  # a fresh load waits for the memory
            await self._give_back(0.0)

    def _start(self, act: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(act)
        self._acts.add(task)
        task.add_done_callback(self._acts.discard)
        return task

    async def _give_back(self, drain_s: float) -> None:
        replicas = (*self.replicas, self.asleep) if self.asleep else self.replicas
        self.replicas, self.asleep = (), None
        for replica in replicas:
            await self._effects.unload(replica, drain_s=drain_s)

    def _change(
        self,
        state: State,
        reason: str,
        *,
        started_ns: int | None = None,
        replica: Replica | None = None,
        size_bytes: int | None = None,
    ) -> None:
        self.state, self.reason = state, reason
        took_s = None if started_ns is None else (self._clock.monotonic_ns() - started_ns) / 1e9
        self.took_s = took_s
        event = DeploymentChanged(
            model=str(self.entry.ref),
            state=state.value,
            reason=reason,
            utc_ns=self._clock.utc_ns(),
            took_s=took_s,
            bytes=replica.plan.weights_bytes + replica.plan.kv_bytes if replica else size_bytes,
            predicted_bytes=replica.plan.weights_bytes if replica else None,
            measured_bytes=replica.measured_bytes if replica else None,
        )
        log_event(
            log,
            f"model.{state.value}",
            level=logging.ERROR if state is State.FAILED else logging.INFO,
            model=event.model,
            why=reason,
            took_s=took_s and round(took_s, 3),
            bytes=event.bytes,
        )
        self._on_change(event)


def _again(error: LlmhostError, retry_after_s: float) -> LlmhostError:
    """The same error without its traceback, which would keep what the load held, and grow each time it is raised."""
    again = type(error).__new__(type(error), *error.args)
    again.__dict__.update(error.__dict__)
    again.retry_after_s = None if isinstance(error, WITHOUT_CURE) else retry_after_s
    return again


def _is_leaving() -> bool:
    """The task that asks has been cancelled itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
