"""Responses and the items that they are made of, each within the scope of those who may see it.

What a response or an item says is not known here. One that others went on with is kept for as long as they are.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from llmhost.core.errors import InvalidValue
from llmhost.core.ports import Clock
from llmhost.storage import kept_bytes
from llmhost.storage.connect import Connection
from llmhost.storage.rows import insert_rows
from llmhost.storage.schema import Schema
from llmhost.storage.state import State

SCHEMA = Schema(
    "responses",
    {
        "responses_and_their_items": (
            """CREATE TABLE responses (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                id TEXT NOT NULL UNIQUE,
                scope TEXT NOT NULL,
                previous TEXT,
                conversation TEXT,
                conversation_seq INTEGER,
                is_live INTEGER NOT NULL,
                resource BLOB NOT NULL,
                events BLOB
            ) STRICT""",
            "CREATE INDEX responses_previous ON responses (previous)",
            "CREATE INDEX responses_live ON responses (is_live) WHERE is_live",
            """CREATE TABLE response_items (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                response TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
                is_output INTEGER NOT NULL,
                id TEXT NOT NULL,
                item BLOB NOT NULL
            ) STRICT""",
            "CREATE INDEX response_items_response ON response_items (response)",
            "CREATE INDEX response_items_id ON response_items (id)",
            """CREATE TABLE conversations (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                used_ns INTEGER NOT NULL,
                id TEXT NOT NULL UNIQUE,
                scope TEXT NOT NULL,
                metadata BLOB NOT NULL
            ) STRICT""",
            """CREATE TABLE conversation_items (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
                id TEXT NOT NULL,
                item BLOB NOT NULL,
                UNIQUE (conversation, id)
            ) STRICT""",
            "CREATE INDEX conversation_items_id ON conversation_items (id)",
        ),
        "bytes_of_each_scope": kept_bytes.STEP,
    },
)

Item = tuple[str, bytes]
"""Its id, and its JSON."""

_DELETED_AT_ONCE = 200
_CHAIN = """
    WITH RECURSIVE chain (id, previous, conversation, conversation_seq, is_live, depth) AS (
        SELECT id, previous, conversation, conversation_seq, is_live, 0 FROM responses WHERE id = ? AND scope = ?
        UNION ALL
        SELECT r.id, r.previous, r.conversation, r.conversation_seq, r.is_live, depth + 1
        FROM chain JOIN responses r ON r.id = chain.previous WHERE r.scope = ?
    )
    SELECT id, previous, conversation, conversation_seq, is_live FROM chain ORDER BY depth DESC"""
_FORGET = f"""
    DELETE FROM responses WHERE seq IN (
        SELECT seq FROM responses old WHERE utc_ns < ? AND NOT is_live
        AND NOT EXISTS (SELECT 1 FROM responses young WHERE young.previous = old.id)
        ORDER BY seq LIMIT {_DELETED_AT_ONCE})"""
_FORGET_CONVERSATIONS = (
    "DELETE FROM conversations WHERE seq IN"
    f" (SELECT seq FROM conversations WHERE used_ns < ? ORDER BY seq LIMIT {_DELETED_AT_ONCE})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A response. `resource` is its JSON without its output, which is `output`."""

    id: str
    scope: str
    resource: bytes
    input: Sequence[Item]
    output: Sequence[Item] = ()
    previous: str | None = None
    conversation: str | None = None
    """Gets input and output as well, once the response has ended and `is_said`."""
    is_said: bool = True
    """It is an answer: what failed or was cancelled is no part of its conversation."""
    is_live: bool = False
    """Its end is still to come."""
    events: bytes | None = field(default=None, repr=False)


LONGEST_BYTES = 32 * 2**20
"""Of all items that one response may go on with: they are in memory at once."""


class ChainBroken(Exception):
    """A response that another goes on with is not there, or not there yet."""

    def __init__(self, *, is_live: bool = False) -> None:
        self.is_live = is_live


class ResponseStore:
    """Tables of `state.db`. Everything raises StorageFailed, and what writes Overloaded, or Forbidden for no room."""

    def __init__(
        self, state: State, *, node_id: str, clock: Clock, most_bytes: int = 2**30
    ) -> None:
        """`most_bytes` is what one scope may have, conversations included."""
        self._most_bytes = most_bytes
        self._state = state
        self._node_id = node_id
        self._clock = clock

    async def begin(self, kept: Kept) -> None:
        """A response whose end is to come: the next process will find it."""
        await self._state.write(partial(self._keep, kept))

    async def end(self, kept: Kept) -> None:
        """The same at its end, or one that nobody began: on disk when this is done."""
        await self._state.write_through(partial(self._keep, kept))

    async def find(self, scope: str, name: str) -> bytes | None:
        """A response's JSON, its output included."""
        return await self._state.read(partial(_find, scope=scope, name=name))

    async def events(self, scope: str, name: str) -> bytes | None:
        """Every event of a response that ran in the background, in order."""
        query = "SELECT events FROM responses WHERE id = ? AND scope = ?"
        row = await self._state.read(lambda c: c.execute(query, (name, scope)).fetchone())
        return None if row is None or row[0] is None else zlib.decompress(row[0])

    async def input(self, scope: str, name: str) -> list[Item] | None:
        """Items that came with a response; None where there is no such response."""
        return await self._state.read(partial(_input, scope=scope, name=name))

    async def item(self, scope: str, name: str) -> bytes | None:
        """The newest item of that id, in a response or a conversation."""
        return await self._state.read(partial(_item, scope=scope, name=name))

    async def chain(self, scope: str, name: str) -> list[bytes]:
        """All items up to the end of a response, oldest first. Raises ChainBroken, InvalidValue for too many bytes."""
        return await self._state.read(partial(_chain, scope=scope, name=name))

    async def delete(self, scope: str, name: str) -> bool:
        """Whether it was there."""
        query = "DELETE FROM responses WHERE id = ? AND scope = ?"
        return await self._state.write_through(
            lambda c: bool(c.execute(query, (name, scope)).rowcount)
        )

    async def forget(self, before_ns: int) -> int:
        """Implements Forgets. Conversations go by when they were last used."""
        count = 0
        for statement in (_FORGET, _FORGET_CONVERSATIONS):
            forget = partial(_run, statement=statement, values=(before_ns,))
            while deleted := await self._state.write(forget):
                count += deleted
        return count

    def end_orphans(self, change: Callable[[bytes], bytes]) -> int:
        """Have every response that a process left behind come to its end, `change`d; returns how many. Blocks."""

        def job(connection: Connection) -> int:
            rows = connection.execute("SELECT id, resource FROM responses WHERE is_live").fetchall()
            for name, resource in rows:
                connection.execute(
                    "UPDATE responses SET is_live = 0, resource = ? WHERE id = ?",
                    (change(resource), name),
                )
            return len(rows)

        return self._state.write_now(job)

    def _keep(self, kept: Kept, connection: Connection) -> None:
        now_ns = self._clock.utc_ns()
        events = None if kept.events is None else zlib.compress(kept.events, 1)
        seq = None
        if kept.conversation is not None:
            at = "SELECT max(seq) FROM conversation_items WHERE conversation = ?"
            (seq,) = connection.execute(at, (kept.conversation,)).fetchone()
        known = connection.execute("SELECT 1 FROM responses WHERE id = ?", (kept.id,)).fetchone()
        if known is None:
            connection.execute(
                "INSERT INTO responses (node_id, utc_ns, id, scope, previous, conversation, conversation_seq, is_live,"
                " resource, events) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(self._node_id, now_ns, kept.id, kept.scope, kept.previous),
                    *(kept.conversation, seq or 0, kept.is_live, kept.resource, events),
                ),
            )
            _insert_items(connection, kept.id, kept.input, is_output=False)
        else:
            connection.execute(
                "UPDATE responses SET is_live = ?, resource = ?, events = ? WHERE id = ?",
                (kept.is_live, kept.resource, events, kept.id),
            )
        _insert_items(connection, kept.id, kept.output, is_output=True)
        if kept.conversation is not None and kept.is_said and not kept.is_live:
            add_items(connection, kept.conversation, [*kept.input, *kept.output], now_ns)
        # One that was let begin has to end.
        kept_bytes.make_room(
            connection, kept.scope, self._most_bytes, kept.id, is_needed=known is None
        )


def add_items(
    connection: Connection, conversation: str, items: Sequence[Item], now_ns: int
) -> None:
    """At the end of a conversation that is still there; what has an id of one that is there takes its place."""
    touched = connection.execute(
        "UPDATE conversations SET used_ns = ? WHERE id = ?", (now_ns, conversation)
    )
    if touched.rowcount:
        rows = [(conversation, name, item) for name, item in items]
        columns = ("conversation", "id", "item")
        replace = "ON CONFLICT (conversation, id) DO UPDATE SET item = excluded.item"
        insert_rows(connection, "conversation_items", columns, rows, or_else=replace)


def _insert_items(
    connection: Connection, response: str, items: Sequence[Item], *, is_output: bool
) -> None:
    rows = [(response, int(is_output), name, item) for name, item in items]
    insert_rows(connection, "response_items", ("response", "is_output", "id", "item"), rows)


def _find(connection: Connection, *, scope: str, name: str) -> bytes | None:
    query = "SELECT resource FROM responses WHERE id = ? AND scope = ?"
    if (row := connection.execute(query, (name, scope)).fetchone()) is None:
        return None
    query = "SELECT item FROM response_items WHERE response = ? AND is_output ORDER BY seq"
    output = [msgspec.Raw(item) for (item,) in connection.execute(query, (name,))]
    resource = msgspec.json.decode(row[0], type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**resource, "output": output})


def _input(connection: Connection, *, scope: str, name: str) -> list[Item] | None:
    query = "SELECT 1 FROM responses WHERE id = ? AND scope = ?"
    if connection.execute(query, (name, scope)).fetchone() is None:
        return None
    query = "SELECT id, item FROM response_items WHERE response = ? AND NOT is_output ORDER BY seq"
    return connection.execute(query, (name,)).fetchall()


def _item(connection: Connection, *, scope: str, name: str) -> bytes | None:
    for query in (
        "SELECT item FROM response_items i JOIN responses r ON r.id = i.response"
        " WHERE i.id = ? AND r.scope = ? ORDER BY i.seq DESC LIMIT 1",
        "SELECT item FROM conversation_items i JOIN conversations c ON c.id = i.conversation"
        " WHERE i.id = ? AND c.scope = ? ORDER BY i.seq DESC LIMIT 1",
    ):
        row = connection.execute(query, (name, scope)).fetchone()
        if row is not None:
            item: bytes = row[0]
            return item
    return None


def _chain(connection: Connection, *, scope: str, name: str) -> list[bytes]:
    links = connection.execute(_CHAIN, (name, scope, scope)).fetchall()
    if not links or links[0][1] is not None:
        raise ChainBroken
    if any(is_live for *_, is_live in links):
        raise ChainBroken(is_live=True)
    return list(_at_most(_items_of(connection, links), "previous_response_id"))


def _items_of(connection: Connection, links: Sequence[tuple[Any, ...]]) -> Iterator[bytes]:
    _, _, conversation, conversation_seq, _ = links[0]
    if conversation is not None:
        query = (
            "SELECT item FROM conversation_items WHERE conversation = ? AND seq <= ? ORDER BY seq"
        )
        for (item,) in connection.execute(query, (conversation, conversation_seq)):
            yield item
    query = "SELECT item FROM response_items WHERE response = ? ORDER BY is_output, seq"
    for response, *_ in links:
        for (item,) in connection.execute(query, (response,)):
            yield item


def _at_most(items: Iterator[bytes], param: str) -> Iterator[bytes]:
    """Raises InvalidValue for what is too long to go on with."""
    size = 0
    for item in items:
        size += len(item)
        check_length(size, param)
        yield item


def check_length(size: int, param: str) -> None:
    """Raises InvalidValue for more bytes of items than one response may go on with."""
    if size > LONGEST_BYTES:
        raise InvalidValue(
            f"What was said so far has more than {LONGEST_BYTES} bytes, which is all that a response goes on with."
            " Begin anew, with a summary.",
            param=param,
        )


def _run(connection: Connection, *, statement: str, values: tuple[int, ...]) -> int:
    return connection.execute(statement, values).rowcount
