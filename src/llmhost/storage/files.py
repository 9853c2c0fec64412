"""Files that callers upload and batches make: their facts in the state file, their contents in a folder beside it.

A file is whole or not there: contents are written under another name, forced to disk, renamed, and only then have a
row. What a process that was killed left without a row is swept at the next start. What is in a file is not known here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from llmhost.core.errors import FileInUse, FilesFull, InvalidValue
from llmhost.core.ports import Clock
from llmhost.storage.connect import Connection, StorageFailed
from llmhost.storage.draft import Draft, new_file_id
from llmhost.storage.keyed_calls import Note, unmake
from llmhost.storage.schema import Schema
from llmhost.storage.state import State

SCHEMA = Schema(
    "files",
    {
        "files_and_who_holds_them": (
            # AUTOINCREMENT: rows are deleted, and a list goes on behind the number of one that was
            """CREATE TABLE files (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                id TEXT NOT NULL UNIQUE,
                org TEXT NOT NULL,
                team TEXT,
                purpose TEXT NOT NULL,
                filename TEXT NOT NULL,
                bytes INTEGER NOT NULL,
                expires_ns INTEGER,
                holds INTEGER NOT NULL DEFAULT 0 CHECK (holds >= 0)
            ) STRICT""",
            "CREATE INDEX files_by_owner ON files (org, team, seq)",
            "CREATE INDEX files_by_expiry ON files (expires_ns) WHERE expires_ns IS NOT NULL",
        )
    },
)
"""`holds` counts who reads a file and may not lose it."""

_FORGOTTEN_AT_ONCE = 500
_OWNED = "org = ? AND team IS ?"
_ALIVE = "(expires_ns IS NULL OR expires_ns > ? OR holds > 0)"


class Owner(NamedTuple):
    """Whose an object is: a team's, or the organisation's where a key has no team. Others don't see it."""

    org: str
    team: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    seq: int = 0
    id: str
    org: str
    team: str | None
    purpose: str
    filename: str
    bytes: int
    utc_ns: int
    expires_ns: int | None = None
    holds: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """What one owner may have, all together."""

    files: int
    bytes: int


_COLUMNS = tuple(field.name for field in fields(StoredFile))
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM files"
_INSERT = (
    "INSERT INTO files (node_id, id, org, team, purpose, filename, bytes, utc_ns, expires_ns)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq"
)


class Files:
    """Owns the folder, and the table of the state file."""

    def __init__(
        self,
        state: State,
        folder: Path,
        *,
        node_id: str,
        clock: Clock,
        keep_free_bytes: int,
    ) -> None:
        self._state = state
        self._folder = folder
        self.node_id = node_id
        self._clock = clock
        self._keep_free_bytes = keep_free_bytes

    def draft(self) -> Draft:
        """Blocks. Raises StorageFailed."""
        return Draft(self._folder, new_file_id(), keep_free_bytes=self._keep_free_bytes)

    def path(self, file_id: str) -> Path:
        """Where the contents of a file are that was found."""
        return self._folder / file_id

    def facts(
        self, draft: Draft, owner: Owner, *, purpose: str, filename: str, lasts_s: int | None
    ) -> StoredFile:
        """What a row will say of a draft; `lasts_s` seconds from now it is forgotten, or never."""
        now_ns = self._clock.utc_ns()
        return StoredFile(
            id=draft.id,
            org=owner.org,
            team=owner.team,
            purpose=purpose,
            filename=filename,
            bytes=draft.bytes,
            utc_ns=now_ns,
            expires_ns=None if lasts_s is None else now_ns + lasts_s * 10**9,
        )

    async def add(
        self, file: StoredFile, room: Room | None = None, note: Note | None = None
    ) -> StoredFile:
        """A row for a finished draft. Raises FilesFull where its owner has no `room` for it, StorageFailed, and what
        `note` does. What it raised for is not there."""
        job = partial(_add, file=file, node_id=self.node_id, room=room, note=note)
        stored = await self._state.write(job)
        try:
            await self._state.force()
        except StorageFailed:
            undo = partial(_undo, file_id=file.id, is_noted=note is not None)
            await self._state.write(undo)
            raise
        return stored

    async def find(self, file_id: str, owner: Owner | None = None) -> StoredFile | None:
        """None for one of another owner, and for one that is over."""
        now_ns = self._clock.utc_ns()
        return await self._state.read(partial(_find, file_id=file_id, owner=owner, now_ns=now_ns))

    async def there(self, file_ids: Sequence[str], owner: Owner) -> set[str]:
        """Those that the owner has."""
        if not file_ids:
            return set()
        now_ns = self._clock.utc_ns()
        return await self._state.read(
            partial(_there, file_ids=tuple(file_ids), owner=owner, now_ns=now_ns)
        )

    async def page(
        self,
        owner: Owner | None,
        *,
        org: str | None = None,
        purpose: str | None = None,
        after: str | None = None,
        limit: int,
        is_rising: bool = False,
    ) -> list[StoredFile]:
        """Files behind the one with the id `after`, the newest first, or the oldest if `is_rising`: of an owner, an
        organisation, or everybody.

        Raises InvalidValue for an `after` that is none of the owner's.
        """
        return await self._state.read(
            partial(
                _page,
                owner=owner,
                org=org,
                purpose=purpose,
                after=after,
                limit=limit,
                is_rising=is_rising,
                now_ns=self._clock.utc_ns(),
            )
        )

    async def delete(self, file_id: str, owner: Owner | None = None) -> bool:
        """Whether it was there. Raises FileInUse."""
        now_ns = self._clock.utc_ns()
        job = partial(_delete, file_id=file_id, owner=owner, now_ns=now_ns)
        is_gone = await self._state.write(job)
        if is_gone:
            self.path(file_id).unlink(missing_ok=True)
        return is_gone

    async def forget_expired(self) -> int:
        """Delete those whose time is over and that nobody holds; returns how many."""
        count = 0
        while gone := await self._state.write(partial(_expire, now_ns=self._clock.utc_ns())):
            count += len(gone)
            for file_id in gone:
                self.path(file_id).unlink(missing_ok=True)
        return count

    async def total(self) -> tuple[int, int]:
        """Files and their bytes, of all owners."""
        return await self._state.read(_total)

    def sweep(self) -> list[str]:
        """Make folder and table agree: contents without a row go, and rows without contents. Blocks; for the start,
        when nobody writes. The names of what went."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        known = set(self._state.read_now(_ids))
        there = {path.name for path in self._folder.iterdir()}
        for name in there - known:
            (self._folder / name).unlink(missing_ok=True)
        lost = sorted(known - there)
        if lost:
            self._state.write_now(partial(_drop, ids=lost))
        return sorted(there - known) + lost


def _add(
    connection: Connection,
    *,
    file: StoredFile,
    node_id: str,
    room: Room | None,
    note: Note | None,
) -> StoredFile:
    if note is not None:
        note(connection, file.id)
    return insert_file(connection, file=file, node_id=node_id, room=room)


def _undo(connection: Connection, *, file_id: str, is_noted: bool) -> None:
    connection.execute("DELETE FROM files WHERE id = ?", (file_id,))
    if is_noted:
        unmake(connection, file_id)


def insert_file(
    connection: Connection, *, file: StoredFile, node_id: str, room: Room | None = None
) -> StoredFile:
    """For a writer's job. Raises FilesFull."""
    if room is not None:
        _check_room(connection, file, room)
    connection.execute(
        _INSERT,
        (
            node_id,
            file.id,
            file.org,
            file.team,
            file.purpose,
            file.filename,
            file.bytes,
            file.utc_ns,
            file.expires_ns,
        ),
    )
    return file


def hold_file(
    connection: Connection, file_id: str, owner: Owner, now_ns: int, *, purpose: str
) -> bool:
    """Keep a file from being deleted until `let_go_of_file`; False where the owner has none of that id and purpose."""
    found = connection.execute(
        f"UPDATE files SET holds = holds + 1 WHERE id = ? AND {_OWNED} AND {_ALIVE} AND purpose = ?",
        (file_id, *owner, now_ns, purpose),
    )
    return found.rowcount > 0


def let_go_of_file(connection: Connection, file_id: str) -> None:
    connection.execute("UPDATE files SET holds = holds - 1 WHERE id = ? AND holds > 0", (file_id,))


def _check_room(connection: Connection, file: StoredFile, room: Room) -> None:
    count, size = connection.execute(
        f"SELECT count(*), coalesce(sum(bytes), 0) FROM files WHERE {_OWNED}", (file.org, file.team)
    ).fetchone()
    if count >= room.files:
        raise FilesFull(
            f"You have {count} files, and may have {room.files}. Delete some, or have them expire."
        )
    if size + file.bytes > room.bytes:
        raise FilesFull(
            f"Your files have {size} bytes and may have {room.bytes}; this one has {file.bytes}."
            " Delete some, or have them expire."
        )


def _find(
    connection: Connection, *, file_id: str, owner: Owner | None, now_ns: int
) -> StoredFile | None:
    row = connection.execute(f"{_SELECT} WHERE id = ? AND {_ALIVE}", (file_id, now_ns)).fetchone()
    file = None if row is None else _file(row)
    return file if file is not None and owner in (None, Owner(file.org, file.team)) else None


def _there(
    connection: Connection, *, file_ids: Sequence[str], owner: Owner, now_ns: int
) -> set[str]:
    rows = connection.execute(
        f"SELECT id FROM files WHERE id IN (SELECT value FROM json_each(?)) AND {_OWNED} AND {_ALIVE}",
        (json.dumps(file_ids), *owner, now_ns),
    )
    return {row[0] for row in rows}


def _page(
    connection: Connection,
    *,
    owner: Owner | None,
    org: str | None,
    purpose: str | None,
    after: str | None,
    limit: int,
    is_rising: bool,
    now_ns: int,
) -> list[StoredFile]:
    wheres: list[str] = [_ALIVE]
    bounds: list[Any] = [now_ns]
    if owner is not None:
        wheres.append(_OWNED)
        bounds += owner
    if org is not None:
        wheres.append("org = ?")
        bounds.append(org)
    if purpose is not None:
        wheres.append("purpose = ?")
        bounds.append(purpose)
    if after is not None:
        found = _find(connection, file_id=after, owner=owner, now_ns=0)
        if found is None:
            raise InvalidValue(f"No file has the id {after[:80]!r}.", param="after")
        wheres.append("seq > ?" if is_rising else "seq < ?")
        bounds.append(found.seq)
    order = "ASC" if is_rising else "DESC"
    query = f"{_SELECT} WHERE {' AND '.join(wheres)} ORDER BY seq {order} LIMIT ?"
    return [_file(row) for row in connection.execute(query, (*bounds, limit))]


def _delete(connection: Connection, *, file_id: str, owner: Owner | None, now_ns: int) -> bool:
    file = _find(connection, file_id=file_id, owner=owner, now_ns=now_ns)
    if file is None:
        return False
    if file.holds:
        raise FileInUse(file_id)
    connection.execute("DELETE FROM files WHERE id = ?", (file_id,))
    return True


def _expire(connection: Connection, *, now_ns: int) -> list[str]:
    rows = connection.execute(
        "DELETE FROM files WHERE seq IN (SELECT seq FROM files WHERE expires_ns <= ? AND holds = 0"
        f" ORDER BY expires_ns LIMIT {_FORGOTTEN_AT_ONCE}) RETURNING id",
        (now_ns,),
    )
    return [row[0] for row in rows.fetchall()]


def _total(connection: Connection) -> tuple[int, int]:
    count, size = connection.execute(
        "SELECT count(*), coalesce(sum(bytes), 0) FROM files"
    ).fetchone()
    return count, size


def _ids(connection: Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT id FROM files")]


def _drop(connection: Connection, *, ids: Sequence[str]) -> None:
    connection.executemany("DELETE FROM files WHERE id = ?", [(each,) for each in ids])


def _file(row: Sequence[Any]) -> StoredFile:
    return StoredFile(**dict(zip(_COLUMNS, row, strict=True)))
