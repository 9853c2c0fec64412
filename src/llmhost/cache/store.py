"""Where answers are kept: memory at once, and disk by one thread of its own, which the HTTP loop never waits in.

Used from the HTTP loop. What is put is there for the next request of the same loop; on disk it is soon after.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from llmhost.cache.answer import Answer, decoded, encoded, size_in_memory
from llmhost.cache.disk import Disk
from llmhost.cache.keys import Keys
from llmhost.cache.memory import Memory

MOST_WAITING = 1_000
"""Answers that wait for the disk; beyond it they are in memory alone."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Meant:
    """What is to be forgotten; all of it where nothing is named. Several names must all be met."""

    model: str | None = None
    org: str | None = None
    tag: str | None = None

    @property
    def is_all(self) -> bool:
        return self.model is None and self.org is None and self.tag is None

    def names(self, org: str, model: str) -> bool:
        """Whether an organisation's requests to a model, `name@version`, are meant, whatever their tags."""
        return self.org in (None, org) and self.model in (None, model.partition("@")[0])


@dataclass(frozen=True, slots=True)
class Sizes:
    memory_answers: int
    memory_bytes: int
    disk_answers: int
    disk_bytes: int


class AnswerStore:
    """Two tiers. Without a disk answers live as long as the process."""

    def __init__(self, memory: Memory, disk: Disk | None, keys: Keys) -> None:
        self._memory = memory
        self._disk = disk
        self._keys = keys
        self._thread = ThreadPoolExecutor(1, "cache") if disk is not None else None
        self._handed = 0
        self._written = 0
        """Counted by the thread; the difference is what waits for it."""
        self._purges: list[tuple[Callable[[str, Answer], bool], int]] = []
        """What is being forgotten on disk, and since when: none of it is read meanwhile."""
        self._purged: list[tuple[Callable[[str, Answer], bool], int]] = []
        self.unwritten = 0
        """Answers that did not go to disk because too many were waiting."""

    @property
    def memory(self) -> Memory:
        return self._memory

    @property
    def disk(self) -> Disk | None:
        return self._disk

    def peek(self, key: str) -> Answer | None:
        """From memory alone."""
        return self._memory.get(key)

    async def get(self, key: str) -> Answer | None:
        if (found := self._memory.get(key)) is not None:
            return found
        if self._disk is None or self._disk.is_broken:
            return None
        raw = await self._off_loop(self._disk.get, key)
        answer = None if raw is None else decoded(raw)
        if answer is None or self._is_purged(key, answer):
            return None
        self._memory.put(key, answer, size_in_memory(answer))
        return answer

    def put(self, key: str, answer: Answer, *, expires_s: float, began_ns: int) -> int:
        """Keep it. `began_ns` is when its request came: what was to be forgotten since is not kept. Its bytes, 0 if
        it is not kept."""
        if any(
            since_ns >= began_ns and is_meant(key, answer) for is_meant, since_ns in self._purged
        ):
            return 0
        raw = encoded(answer)
        self._memory.put(key, answer, size_in_memory(answer))
        if self._thread is None or self._disk is None:
            return len(raw)
        if self._handed - self._written >= MOST_WAITING:
            self.unwritten += 1
            return len(raw)
        self._handed += 1
        self._thread.submit(self._write, key, raw, expires_s, answer.tag or None)
        return len(raw)

    async def drop(self, key: str) -> None:
        self._memory.drop(key)
        if self._disk is not None:
            await self._off_loop(self._disk.drop, key)

    async def purge(self, meant: Meant, now_ns: int) -> int:
        """Forget, here and on disk; comes back when it is done. How many there were, of those on disk where there is
        one."""
        names_it = self.test(meant)

        def is_meant(key: str, answer: Answer) -> bool:
            return names_it(key, answer.tag)

        mark = (is_meant, now_ns)
        self._purged = [*self._purged[-99:], mark]
        self._purges.append(mark)
        try:
            gone = self._memory.purge(is_meant)
            if self._disk is not None:
                gone = max(gone, await self._off_loop(self._purge_disk, meant))
        finally:
            self._purges.remove(mark)
        return gone

    async def sizes(self) -> Sizes:
        on_disk = (0, 0) if self._disk is None else await self._off_loop(self._disk.size)
        return Sizes(len(self._memory), self._memory.bytes, *on_disk)

    async def drop_expired(self) -> None:
        """What is too old on disk makes room."""
        if self._disk is not None:
            await self._off_loop(self._disk.drop_expired)

    def close(self) -> None:
        """Write what waits. Blocks."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        if self._disk is not None:
            self._disk.close()

    def _write(self, key: str, raw: bytes, expires_s: float, tag: str | None) -> None:
        assert self._disk is not None
        self._disk.put(key, raw, expires_s=expires_s, tag=tag)
        self._written += 1

    def _purge_disk(self, meant: Meant) -> int:
        assert self._disk is not None
        if meant.is_all:
            return self._disk.clear()
        if meant.tag is not None and meant.model is None and meant.org is None:
            return self._disk.drop_tag(meant.tag)
        model = None if meant.model is None else self._keys.model_mark(meant.model)
        org = None if meant.org is None else self._keys.mark_of_org(meant.org)

        def is_meant(key: str) -> bool:
            its_model, its_org, _ = key.split(".")
            return model in (None, its_model) and org in (None, its_org)

        if meant.tag is None:
            return self._disk.drop_keys(is_meant)
        return self._disk.drop_keys(lambda key: is_meant(key) and self._has_tag(key, meant.tag))

    def _has_tag(self, key: str, tag: str | None) -> bool:
        assert self._disk is not None
        raw = self._disk.get(key)
        answer = None if raw is None else decoded(raw)
        return answer is not None and answer.tag == tag

    def test(self, meant: Meant) -> Callable[[str, str], bool]:
        """Whether an answer of this key and tag is meant."""
        model = None if meant.model is None else self._keys.model_mark(meant.model)
        org = None if meant.org is None else self._keys.mark_of_org(meant.org)

        def is_meant(key: str, tag: str) -> bool:
            its_model, its_org, _ = key.split(".")
            return (
                model in (None, its_model) and org in (None, its_org) and meant.tag in (None, tag)
            )

        return is_meant

    def _is_purged(self, key: str, answer: Answer) -> bool:
        return any(
            answer.stored_ns <= since_ns and is_meant(key, answer)
            for is_meant, since_ns in self._purges
        )

    async def _off_loop(self, act: Callable[..., T], *args: object) -> T:
        assert self._thread is not None
        return await asyncio.get_running_loop().run_in_executor(self._thread, act, *args)
