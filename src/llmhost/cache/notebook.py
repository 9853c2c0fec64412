"""What the cache has learnt, on disk for the next process: kinds of requests with their policies, how far answers to
alike questions can be trusted, and their vectors.

Each part says what of it has changed; once a minute, and at the end, that is written. A row carries a seal of this node
over its name, its form and its content, so what somebody else has written, or a program that understands texts in
another way, is nothing. It has no prompt and no answer, but the words of questions that have to agree.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from llmhost.cache.keys import Keys
from llmhost.core.errors import LlmhostError
from llmhost.core.ports import Clock
from llmhost.observe.logs import log_event
from llmhost.storage.learnt import LearntFile, Name

log = logging.getLogger("llmhost.cache")

_encode = msgspec.msgpack.Encoder().encode


class Keeps(Protocol):
    """A part of what is learnt. Owned by the HTTP loop."""

    form: str
    """Of its rows, and of what they are made with."""
    row_type: Any
    changed: set[str]
    """Names of rows that are not on disk as they are here."""

    def row(self, name: str) -> Any:
        """A copy that does not change; None where there is none any more."""

    def restore(self, name: str, row: Any, now_ns: int) -> bool:
        """Have it again; False where it does not fit any more."""


class Notebook:
    """Between what is learnt and its file."""

    def __init__(
        self, parts: Mapping[str, Keeps], file: LearntFile, keys: Keys, clock: Clock
    ) -> None:
        self._parts = parts
        self._file = file
        self._keys = keys
        self._clock = clock
        self._turn = asyncio.Lock()

    def load(self) -> None:
        """At the start. Blocks."""
        now_ns = self._clock.utc_ns()
        for (part, name), sealed in self._file.load():
            keeps = self._parts.get(part)
            if keeps is None:
                continue
            row = self._opened(part, name, keeps, sealed)
            if row is None or not keeps.restore(name, row, now_ns):
                keeps.changed.add(name)

    async def save(self) -> None:
        """Write what has changed. What can't be written is tried again with the next."""
        async with self._turn:
            rows = self._taken()
            if rows:
                failure = await asyncio.to_thread(self._write, rows)
                self._note(rows, failure)

    def save_now(self) -> None:
        """The same, at the end. Blocks."""
        rows = self._taken()
        if rows:
            self._note(rows, self._write(rows))

    def _taken(self) -> dict[Name, Any]:
        taken = {}
        for part, keeps in self._parts.items():
            names, keeps.changed = keeps.changed, set()
            taken.update({(part, name): keeps.row(name) for name in names})
        return taken

    def _write(self, rows: Mapping[Name, Any]) -> LlmhostError | None:
        put = {name: self._sealed(*name, row) for name, row in rows.items() if row is not None}
        try:
            self._file.write(put, rows.keys() - put.keys(), self._clock.utc_ns())
        except LlmhostError as error:
            return error
        return None

    def _note(self, rows: Mapping[Name, Any], failure: LlmhostError | None) -> None:
        if failure is not None:
            log_event(log, "cache.not_saved", level=logging.WARNING, why=str(failure))
            for part, name in rows:
                self._parts[part].changed.add(name)

    def _sealed(self, part: str, name: str, row: Any) -> bytes:
        return self._keys.seal(self._place(part, name), _encode(row))

    def _opened(self, part: str, name: str, keeps: Keeps, sealed: bytes) -> Any:
        raw = self._keys.opened(self._place(part, name), sealed)
        if raw is None:
            return None
        try:
            return msgspec.msgpack.decode(raw, type=keeps.row_type)
        except msgspec.DecodeError:
            return None

    def _place(self, part: str, name: str) -> str:
        return f"{part}\0{self._parts[part].form}\0{name}"
