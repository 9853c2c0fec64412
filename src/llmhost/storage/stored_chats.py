"""Chats that callers had the server store: what was asked, what was answered, and the labels they are found by.

Each belongs to a place, whose callers share it; what a place is is not known here. Bytes are bounded for each
organisation, the oldest of its chats making way, so that nobody pushes out another's.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from llmhost.storage.connect import Connection
from llmhost.storage.schema import Schema
from llmhost.storage.state import State

SCHEMA = Schema(
    "stored_chats",
    {
        "chats_and_their_bytes": (
            # AUTOINCREMENT: pages go by these numbers, which must not come back
            """CREATE TABLE stored_chats (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                id TEXT NOT NULL UNIQUE,
                org TEXT NOT NULL,
                place TEXT NOT NULL,
                model TEXT NOT NULL,
                metadata TEXT NOT NULL,
                messages BLOB NOT NULL,
                answer BLOB NOT NULL
            ) STRICT""",
            "CREATE INDEX stored_chats_of_place ON stored_chats (place, seq)",
            "CREATE INDEX stored_chats_of_org ON stored_chats (org, seq)",
            "CREATE INDEX stored_chats_by_age ON stored_chats (utc_ns)",
            "CREATE TABLE stored_chat_bytes (org TEXT PRIMARY KEY, bytes INTEGER NOT NULL) STRICT",
            """CREATE TRIGGER stored_chat_comes AFTER INSERT ON stored_chats BEGIN
                INSERT INTO stored_chat_bytes VALUES (NEW.org, length(NEW.messages) + length(NEW.answer))
                ON CONFLICT (org) DO UPDATE SET bytes = bytes + excluded.bytes;
            END""",
            """CREATE TRIGGER stored_chat_goes AFTER DELETE ON stored_chats BEGIN
                UPDATE stored_chat_bytes SET bytes = bytes - length(OLD.messages) - length(OLD.answer)
                WHERE org = OLD.org;
            END""",
        )
    },
)

PAGE_BYTES = 16 * 2**20
"""A page ends early where its chats are longer together."""
_DELETED_AT_ONCE = 100
_INSERT = (
    "INSERT INTO stored_chats (node_id, utc_ns, id, org, place, model, metadata, messages, answer)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_FORGET = (
    "DELETE FROM stored_chats WHERE seq IN"
    f" (SELECT seq FROM stored_chats WHERE utc_ns < ? ORDER BY utc_ns LIMIT {_DELETED_AT_ONCE})"
)
_OLDEST = "DELETE FROM stored_chats WHERE seq = (SELECT min(seq) FROM stored_chats WHERE org = ?)"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

Metadata = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredChat:
    """One chat, as it is kept."""

    id: str
    org: str
    place: str
    """Who may see it."""
    model: str
    """As it was asked for."""
    metadata: Metadata
    messages: bytes
    """A JSON list."""
    answer: bytes
    """A JSON object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which chats a page is of."""

    places: Sequence[str]
    after: str | None = None
    limit: int
    is_newest_first: bool = False
    model: str | None = None
    metadata: Metadata | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Chats with their labels in them, decoded."""

    data: list[dict[str, Any]]
    has_more: bool


class StoredChats:
    """Owns its tables of `state.db`."""

    def __init__(self, state: State, *, node_id: str, most_bytes_per_org: int) -> None:
        self._state = state
        self._node_id = node_id
        self._most_bytes = most_bytes_per_org

    async def keep(self, chat: StoredChat, utc_ns: int) -> bool:
        """Done when it will outlive this process; False where it is too long to be kept at all.

        Raises StorageFailed or Overloaded.
        """
        labels = json.dumps(dict(chat.metadata))
        facts = (self._node_id, utc_ns, chat.id, chat.org, chat.place, chat.model, labels)
        row = (*facts, chat.messages, chat.answer)
        return await self._state.write(partial(_keep, row=row, org=chat.org, most=self._most_bytes))

    async def page(self, wanted: Wanted) -> Page | None:
        """Those that are wanted, in order; None where there is no chat for them to come after."""
        return await self._state.read(partial(_page, wanted=wanted))

    async def find(self, id_: str, places: Sequence[str]) -> dict[str, Any] | None:
        return await self._state.read(partial(_find, id_=id_, places=places))

    async def messages(self, id_: str, places: Sequence[str]) -> list[dict[str, Any]] | None:
        """What was asked."""
        return await self._state.read(partial(_messages, id_=id_, places=places))

    async def label(self, id_: str, places: Sequence[str], metadata: Metadata) -> bool:
        """Give it these labels in place of its own; False where there is no such chat."""
        told = json.dumps(dict(metadata))
        return await self._state.write(partial(_label, id_=id_, places=places, told=told))

    async def delete(self, id_: str, places: Sequence[str]) -> bool:
        """False where there is no such chat."""
        return await self._state.write(partial(_delete, id_=id_, places=places))

    async def forget(self, before_ns: int) -> int:
        """Delete what was stored before, a few rows at a time; returns how many."""
        count = 0
        while deleted := await self._state.write(partial(_forget, before_ns=before_ns)):
            count += deleted
        return count


def _keep(connection: Connection, *, row: Sequence[Any], org: str, most: int) -> bool:
    seq = connection.execute(_INSERT, row).lastrowid
    while _bytes_of(connection, org) > most:
        connection.execute(_OLDEST, (org,))
    left = connection.execute("SELECT 1 FROM stored_chats WHERE seq = ?", (seq,)).fetchone()
    return left is not None


def _bytes_of(connection: Connection, org: str) -> int:
    found = connection.execute("SELECT bytes FROM stored_chat_bytes WHERE org = ?", (org,))
    held: int = found.fetchone()[0]
    return held


def _page(connection: Connection, *, wanted: Wanted) -> Page | None:
    clauses = [_in(wanted.places)]
    values: list[Any] = list(wanted.places)
    if wanted.after is not None:
        seq = _seq_of(connection, wanted.after, wanted.places)
        if seq is None:
            return None
        clauses.append("seq < ?" if wanted.is_newest_first else "seq > ?")
        values.append(seq)
    if wanted.model is not None:
        clauses.append("model = ?")
        values.append(_sayable(wanted.model))
    for key, value in (wanted.metadata or {}).items():
        clauses.append("EXISTS (SELECT 1 FROM json_each(metadata) WHERE key = ? AND value = ?)")
        values += (_sayable(key), _sayable(value))
    order = "DESC" if wanted.is_newest_first else "ASC"
    found = connection.execute(
        f"SELECT answer, metadata FROM stored_chats WHERE {' AND '.join(clauses)} ORDER BY seq {order} LIMIT ?",
        (*values, wanted.limit + 1),
    )
    size = 0
    data: list[dict[str, Any]] = []
    for answer, metadata in found:
        if len(data) == wanted.limit or (data and size + len(answer) > PAGE_BYTES):
            return Page(data, has_more=True)
        data.append(_told(answer, metadata))
        size += len(answer)
    return Page(data, has_more=False)


def _find(connection: Connection, *, id_: str, places: Sequence[str]) -> dict[str, Any] | None:
    row = _row(connection, "answer, metadata", id_, places)
    return None if row is None else _told(*row)


def _messages(
    connection: Connection, *, id_: str, places: Sequence[str]
) -> list[dict[str, Any]] | None:
    row = _row(connection, "messages", id_, places)
    return None if row is None else msgspec.json.decode(row[0], type=list[dict[str, Any]])


def _label(connection: Connection, *, id_: str, places: Sequence[str], told: str) -> bool:
    statement = f"UPDATE stored_chats SET metadata = ? WHERE id = ? AND {_in(places)}"
    return connection.execute(statement, (told, _sayable(id_), *places)).rowcount > 0


def _delete(connection: Connection, *, id_: str, places: Sequence[str]) -> bool:
    statement = f"DELETE FROM stored_chats WHERE id = ? AND {_in(places)}"
    return connection.execute(statement, (_sayable(id_), *places)).rowcount > 0


def _forget(connection: Connection, *, before_ns: int) -> int:
    return connection.execute(_FORGET, (before_ns,)).rowcount


def _seq_of(connection: Connection, id_: str, places: Sequence[str]) -> int | None:
    row = _row(connection, "seq", id_, places)
    return None if row is None else int(row[0])


def _row(
    connection: Connection, columns: str, id_: str, places: Sequence[str]
) -> tuple[Any, ...] | None:
    statement = f"SELECT {columns} FROM stored_chats WHERE id = ? AND {_in(places)}"
    found = connection.execute(statement, (_sayable(id_), *places))
    row: tuple[Any, ...] | None = found.fetchone()
    return row


def _in(places: Sequence[str]) -> str:
    return f"place IN ({', '.join('?' * len(places))})"


def _sayable(text: str) -> str:
    """SQLite takes no half of a surrogate pair, and nothing that is kept has one."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def _told(answer: bytes, metadata: str) -> dict[str, Any]:
    told = msgspec.json.decode(answer, type=dict[str, Any])
    return {**told, "metadata": json.loads(metadata)}
