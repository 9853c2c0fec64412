"""Conversations: items in their order, each conversation within the scope of those who may see it.

Their tables are `responses`', whose answers are put at their ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from llmhost.core.errors import NotFound
from llmhost.core.ports import Clock
from llmhost.storage.connect import Connection
from llmhost.storage.kept_bytes import make_room
from llmhost.storage.keyed_calls import Note
from llmhost.storage.responses import Item, add_items, check_length
from llmhost.storage.state import State

_FIND = "SELECT utc_ns, metadata FROM conversations WHERE id = ? AND scope = ?"


@dataclass(frozen=True, slots=True)
class Conversation:
    id: str
    created_s: int
    metadata: bytes


class ConversationStore:
    """Everything raises StorageFailed, and NotFound for a conversation or item that is not there.

    What adds items raises Forbidden where there is no room, and InvalidValue for a conversation that gets too long.
    """

    def __init__(
        self, state: State, *, node_id: str, clock: Clock, most_bytes: int = 2**30
    ) -> None:
        """`most_bytes` is what one scope may have, responses included."""
        self._most_bytes = most_bytes
        self._state = state
        self._node_id = node_id
        self._clock = clock

    async def make(
        self,
        scope: str,
        name: str,
        metadata: bytes,
        items: Sequence[Item],
        note: Note | None = None,
    ) -> Conversation:
        """`note` writes down which call it is of. Raises what that does, and makes nothing then."""
        now_ns = self._clock.utc_ns()

        def job(connection: Connection) -> None:
            connection.execute(
                "INSERT INTO conversations (node_id, utc_ns, used_ns, id, scope, metadata) VALUES (?, ?, ?, ?, ?, ?)",
                (self._node_id, now_ns, now_ns, name, scope, metadata),
            )
            self._add(connection, scope, name, items)
            if note is not None:
                note(connection, name)

        await self._state.write_through(job)
        return Conversation(name, now_ns // 10**9, metadata)

    async def find(self, scope: str, name: str) -> Conversation:
        return await self._state.read(partial(_found, scope=scope, name=name))

    async def change(self, scope: str, name: str, metadata: bytes) -> Conversation:
        def job(connection: Connection) -> Conversation:
            query = "UPDATE conversations SET metadata = ?, used_ns = ? WHERE id = ? AND scope = ?"
            connection.execute(query, (metadata, self._clock.utc_ns(), name, scope))
            return _found(connection, scope=scope, name=name)

        return await self._state.write_through(job)

    async def delete(self, scope: str, name: str) -> None:
        def job(connection: Connection) -> None:
            _found(connection, scope=scope, name=name)
            connection.execute("DELETE FROM conversations WHERE id = ?", (name,))

        await self._state.write_through(job)

    async def items(self, scope: str, name: str, *, is_gone_on_with: bool = False) -> list[Item]:
        """All of them, oldest first. Raises InvalidValue where they are too long to be gone on with."""

        def query(connection: Connection) -> list[Item]:
            _found(connection, scope=scope, name=name)
            if is_gone_on_with:
                check_length(_size(connection, name), "conversation")
            select = "SELECT id, item FROM conversation_items WHERE conversation = ? ORDER BY seq"
            return connection.execute(select, (name,)).fetchall()

        return await self._state.read(query)

    async def some(self, scope: str, name: str, ids: Sequence[str]) -> list[Item]:
        """Those of these items that are still there, oldest first."""
        marks = ", ".join("?" * len(ids))
        select = f"SELECT id, item FROM conversation_items WHERE conversation = ? AND id IN ({marks}) ORDER BY seq"

        def query(connection: Connection) -> list[Item]:
            _found(connection, scope=scope, name=name)
            return connection.execute(select, (name, *ids)).fetchall()

        return await self._state.read(query)

    async def add(
        self,
        scope: str,
        name: str,
        items: Sequence[Item],
        note: Note | None = None,
        noted_as: str = "",
    ) -> None:
        """`note` writes down which call they are of, under that name. Raises what that does, and adds nothing then."""

        def job(connection: Connection) -> None:
            _found(connection, scope=scope, name=name)
            self._add(connection, scope, name, items)
            if note is not None:
                note(connection, noted_as)

        await self._state.write_through(job)

    def _add(self, connection: Connection, scope: str, name: str, items: Sequence[Item]) -> None:
        add_items(connection, name, items, self._clock.utc_ns())
        check_length(_size(connection, name), "items")
        make_room(connection, scope, self._most_bytes)

    async def item(self, scope: str, name: str, item: str) -> bytes:
        def query(connection: Connection) -> bytes:
            _found(connection, scope=scope, name=name)
            select = "SELECT item FROM conversation_items WHERE conversation = ? AND id = ?"
            row = connection.execute(select, (name, item)).fetchone()
            if row is None:
                raise _no_item(item)
            found: bytes = row[0]
            return found

        return await self._state.read(query)

    async def delete_item(self, scope: str, name: str, item: str) -> Conversation:
        """The conversation that it was in."""

        def job(connection: Connection) -> Conversation:
            found = _found(connection, scope=scope, name=name)
            delete = "DELETE FROM conversation_items WHERE conversation = ? AND id = ?"
            if not connection.execute(delete, (name, item)).rowcount:
                raise _no_item(item)
            return found

        return await self._state.write_through(job)


def _found(connection: Connection, *, scope: str, name: str) -> Conversation:
    row = connection.execute(_FIND, (name, scope)).fetchone()
    if row is None:
        raise NotFound(f"There is no conversation {name[:80]!r} here.")
    return Conversation(name, row[0] // 10**9, row[1])


def _size(connection: Connection, name: str) -> int:
    query = "SELECT coalesce(sum(length(item)), 0) FROM conversation_items WHERE conversation = ?"
    (size,) = connection.execute(query, (name,)).fetchone()
    return int(size)


def _no_item(name: str) -> NotFound:
    return NotFound(f"There is no item {name[:80]!r} in this conversation.")
