"""The LoRA adapters that one loaded model has in memory: at most so many, each with a lease of its bytes.

A request holds its adapter from before it is submitted until it has ended, and what is held is never dropped. Of the
others the least recently used makes room. Everything here runs on the HTTP loop; files are read in threads, and the
runner is told between two steps.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from llmhost.core.errors import Conflict, DoesNotFit, Overloaded
from llmhost.core.ports import AdapterHost
from llmhost.deploy.off_loop import shutting_down
from llmhost.deploy.sources import find_files, fingerprint, mark_of_read
from llmhost.gpu.memory import DeviceMemory
from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.deploy")

ROOM_TIMEOUT_S = 30.0
"""How long a request waits for an adapter that nobody uses, when the limit is reached."""

T = TypeVar("T")


class OffThread(Protocol):
    """Runs an act in a thread that nobody need wait for."""

    async def __call__(self, act: Callable[[], T]) -> T: ...


@dataclass(slots=True)
class _Loaded:
    name: str
    key: str
    """The name and what its files hold: what was computed with other files under that name is not shared."""
    size_bytes: int
    users: int = 0
    last_use: int = 0


@dataclass(slots=True)
class AdapterHold:
    """One request's claim on a loaded adapter."""

    key: str
    """By which rows name it."""
    _release: Callable[[], None] | None

    def let_go(self) -> None:
        """Idempotent."""
        release, self._release = self._release, None
        if release is not None:
            release()


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """A loaded adapter, for reports."""

    name: str
    size_bytes: int
    users: int


class AdapterShelf:
    """Owns what a replica has loaded beside its model."""

    def __init__(
        self,
        model: str,
        host: AdapterHost,
        *,
        call: Callable[[Callable[[], None]], Awaitable[None]],
        off_thread: OffThread,
        memory: DeviceMemory | None,
        limit: int,
        models_dir: Path,
    ) -> None:
        self._model = model
        self._host = host
        self._call = call
        self._off_thread = off_thread
        self._memory = memory
        self._limit = limit
        self._models_dir = models_dir
        self._loaded: dict[str, _Loaded] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._leases: set[str] = set()
        self._turn = asyncio.Lock()  # one comes or goes at a time
        self._freed = asyncio.Condition()
        self._uses = itertools.count(1)
        self._is_closed = False
        self._notices: set[asyncio.Task[None]] = set()

    def rows(self) -> list[AdapterRow]:
        return [AdapterRow(one.name, one.size_bytes, one.users) for one in self._loaded.values()]

    def key(self, name: str) -> str | None:
        """Of an adapter that is loaded: it tells the files that it was read from."""
        loaded = self._loaded.get(name)
        return None if loaded is None else loaded.key

    def names(self) -> list[str]:
        return list(self._loaded)

    async def hold(self, name: str, source: str) -> AdapterHold:
        """The adapter, loaded if need be, which stays until the hold is let go.

        Raises ModelUnavailable when it can't be served, DoesNotFit, or Overloaded when all are in use.
        """
        while (loaded := self._loaded.get(name)) is None:
            if self._is_closed:
                raise shutting_down()
            await asyncio.shield(self._start(name, source))  # others may wait for it too
        loaded.users += 1
        loaded.last_use = next(self._uses)
        return AdapterHold(loaded.key, partial(self._let_go, loaded))

    async def unload(self, name: str, *, drain_s: float) -> bool:
        """Drop an adapter once nobody uses it; whether it was loaded. Raises Conflict when that takes too long."""
        async with self._turn:
            loaded = self._loaded.get(name)
            if loaded is None:
                return False
            if not await self._wait_for(lambda: loaded.users == 0, drain_s):
                raise Conflict(
                    f"The adapter {self._model}:{name} still answers {loaded.users} requests after {drain_s:.0f} s."
                    " Unload it again when they have ended."
                )
            await self._drop(loaded, "operator")
        return True

    def close(self) -> None:
        """The model is gone, and its adapters with it. Idempotent."""
        self._is_closed = True
        self._loaded.clear()
        for holder in list(self._leases):
            self._give_back(holder)

    def _start(self, name: str, source: str) -> "asyncio.Task[None]":
        """One load for all who ask at the same time, carried to its end even if they leave."""
        if name not in self._loading:
            task = asyncio.create_task(self._load_in_turn(name, source))
            self._loading[name] = task
            task.add_done_callback(partial(self._forget_load, name))
        return self._loading[name]

    def _forget_load(self, name: str, task: "asyncio.Task[None]") -> None:
        self._loading.pop(name, None)
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may be left

    async def _load_in_turn(self, name: str, source: str) -> None:
        async with self._turn:
            if name not in self._loaded:
                await self._load(name, source)

    async def _load(self, name: str, source: str) -> None:
        folder = await self._off_thread(partial(find_files, source, self._models_dir))
        size_bytes, mark = await self._off_thread(partial(self._look_at, folder))
        await self._make_room()
        holder = f"{self._model}:{name}"
        await self._lease(holder, size_bytes)
        try:
            weights: Any = await self._off_thread(partial(self._host.read, folder))
            now = await self._off_thread(partial(fingerprint, folder))
            key = adapter_key(name, mark_of_read(mark, now))
            await self._call(partial(self._host.add, key, weights))
            if self._is_closed:
                raise shutting_down()
        except BaseException:
            self._give_back(holder)
            raise
        self._loaded[name] = _Loaded(name, key, size_bytes, last_use=next(self._uses))
        log_event(log, "adapter.loaded", model=self._model, adapter=name, bytes=size_bytes)

    def _look_at(self, folder: Path) -> tuple[int, str]:
        return self._host.size_bytes(folder), fingerprint(folder)

    async def _make_room(self) -> None:
        """Be below the limit. Raises Overloaded when every adapter stays in use."""
        while len(self._loaded) >= self._limit:
            if not await self._wait_for(lambda: self._idle() is not None, ROOM_TIMEOUT_S):
                raise Overloaded(
                    f"All {self._limit} adapters that {self._model} may have loaded are answering. Try again later;"
                    " the operator can raise max_adapters.",
                    retry_after_s=1,
                )
            if (victim := self._idle()) is not None:
                await self._drop(victim, "room")

    async def _lease(self, holder: str, size_bytes: int) -> None:
        """Raises DoesNotFit when the device has too little memory even without the adapters that nobody uses."""
        while self._memory is not None:
            try:
                self._memory.grant(holder, weights_bytes=size_bytes, kv_bytes=0)
            except DoesNotFit:
                if (victim := self._idle()) is None:
                    raise
                await self._drop(victim, "memory")
            else:
                self._leases.add(holder)
                return

    def _idle(self) -> _Loaded | None:
        """The one that nobody uses and that was used longest ago."""
        idle = [one for one in self._loaded.values() if not one.users]
        return min(idle, key=lambda one: one.last_use, default=None)

    async def _drop(self, loaded: _Loaded, reason: str) -> None:
        del self._loaded[loaded.name]  # first, so that nobody takes it while it goes
        await self._call(partial(self._host.drop, loaded.key))
        self._give_back(f"{self._model}:{loaded.name}")
        log_event(log, "adapter.dropped", model=self._model, adapter=loaded.name, why=reason)

    def _give_back(self, holder: str) -> None:
        if self._memory is not None and holder in self._leases:
            self._leases.discard(holder)
            self._memory.give_back(holder)

    def _let_go(self, loaded: _Loaded) -> None:
        loaded.users -= 1
        if not loaded.users:
            notice = asyncio.ensure_future(self._tell_freed())
            self._notices.add(notice)  # asyncio itself keeps no task alive
            notice.add_done_callback(self._notices.discard)

    async def _tell_freed(self) -> None:
        async with self._freed:
            self._freed.notify_all()

    async def _wait_for(self, is_so: Callable[[], bool], timeout_s: float) -> bool:
        async with self._freed:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._freed.wait_for(is_so)
            except TimeoutError:
                return is_so()
        return True


def adapter_key(name: str, mark: str) -> str:
    """An adapter, told apart by what its files hold."""
    return f"{name}@{mark}"
