"""Read-only connections of a file that somebody else writes."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from llmhost.storage.connect import Connection, open_for_reading, storage_error

T = TypeVar("T")


class Reader:
    """A small pool of threads, each with a connection of its own that can't write.

    Opens nothing until it is asked. Safe to call from any thread.
    """

    def __init__(self, path: Path, *, threads: int = 2) -> None:
        self.path = path
        self._local = threading.local()
        self._opened: list[Connection] = []
        self._turn = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"reader-{path.stem}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query off the event loop. It should fetch what it needs and return plain values.

        Raises StorageFailed when the file is absent, damaged or out of reach.
        """
        return await asyncio.wrap_future(self._pool.submit(self._on_own_connection, query))

    def read_now(self, query: Callable[[Connection], T]) -> T:
        """The same in the calling thread, which waits; for start-up and commands."""
        connection = open_for_reading(self.path)
        try:
            return self._guarded(query, connection)
        finally:
            connection.close()

    def close(self) -> None:
        """Wait for running queries and close all connections. Idempotent."""
        self._pool.shutdown()
        with self._turn:
            while self._opened:
                self._opened.pop().close()

    def _on_own_connection(self, query: Callable[[Connection], T]) -> T:
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = open_for_reading(self.path)
            self._local.connection = connection
            with self._turn:
                self._opened.append(connection)
        return self._guarded(query, connection)

    def _guarded(self, query: Callable[[Connection], T], connection: Connection) -> T:
        try:
            return query(connection)
        except sqlite3.DatabaseError as error:
            told = storage_error(self.path, error)
            if told is error:
                raise
            raise told from error
