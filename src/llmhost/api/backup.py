"""The route that makes a backup of a running node, and tells how far it is, one JSON object a line."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
from litestar import post
from litestar.response import Stream
from litestar.types import Guard

from llmhost.api.errors import error_object, known_error
from llmhost.api.params import JSONBody
from llmhost.api.router import Router
from llmhost.core.errors import Conflict

log = logging.getLogger("llmhost.backup")

Row = dict[str, Any]
Make = Callable[[Path], Iterator[Row]]
NDJSON = "application/x-ndjson"


class NewBackup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body that asks for a backup: an absolute path on the node's machine, where nothing is yet."""

    path: str


class BackupDesk:
    """One backup at a time. `make` says how far it is and, at last, what it holds."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._turn = threading.Lock()

    def make(self, path: str) -> Iterator[Row]:
        """Blocks while iterated. Raises, before the first row or after, what making it raises."""
        if not self._turn.acquire(blocking=False):
            raise Conflict("A backup is being made already. Try again when it is done.")
        try:
            yield from self._make(Path(path))
        finally:
            self._turn.release()


def backup_router(desk: BackupDesk, guard: Guard) -> Router:
    """For the operator alone."""

    @post("/", media_type=NDJSON, status_code=200)
    async def back_up(data: JSONBody[NewBackup]) -> Stream:
        """Copy the node's data to a new folder of its machine, while it runs. The last line is the manifest."""
        rows = desk.make(data.path)
        first = await asyncio.to_thread(next, rows)
        return Stream(_lines(chain([first], rows)), media_type=NDJSON)

    return Router("/admin/v1/backup", guards=[guard], tags=["admin"], route_handlers=[back_up])


def _lines(rows: Iterator[Row]) -> Iterator[bytes]:
    """A failure is the last line: the status was sent long ago."""
    try:
        for row in rows:
            yield msgspec.json.encode(row) + b"\n"
    except Exception as error:  # noqa: BLE001 - the edge: whatever it is, the reader hears of it
        log.error("backup.failed error=%s", error)
        yield msgspec.json.encode(error_object(known_error(error))) + b"\n"
