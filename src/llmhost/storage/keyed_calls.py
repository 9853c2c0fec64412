"""What calls with an `Idempotency-Key` have made, in the state file: a file, a batch, a conversation, items of one.

The row is written in the transaction of what was made, so that neither is there without the other, whoever is killed
in between. What a name is made of is not known here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from llmhost.core.ports import Clock
from llmhost.storage.connect import Connection
from llmhost.storage.schema import Schema
from llmhost.storage.state import State

SCHEMA = Schema(
    "keyed_calls",
    {
        "calls_and_what_they_made": (
            """CREATE TABLE keyed_calls (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                name BLOB NOT NULL UNIQUE,
                body_hash BLOB NOT NULL,
                request_id TEXT NOT NULL,
                object TEXT NOT NULL UNIQUE
            ) STRICT""",
        )
    },
)

_DELETED_AT_ONCE = 500
_INSERT = (
    "INSERT INTO keyed_calls (node_id, utc_ns, name, body_hash, request_id, object)"
    " VALUES (?, ?, ?, ?, ?, ?)"
)

Note = Callable[[Connection, str], None]
"""For a writer's job: the object of that id is what a call makes. Raises AlreadyMade."""


@dataclass(frozen=True, slots=True)
class Call:
    """What makes two calls the same."""

    name: bytes
    """Whose it is, its route, and its key."""
    body_hash: bytes
    request_id: str
    """Of this very one."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a call made that came before."""

    body_hash: bytes
    request_id: str
    object_id: str


class AlreadyMade(Exception):
    """A call of that name came first."""

    def __init__(self, made: Made) -> None:
        super().__init__(made.object_id)
        self.made = made


class KeyedCalls:
    """Owns the table of the state file. Rows are forgotten `kept_s` after their calls."""

    def __init__(self, state: State, *, node_id: str, clock: Clock, kept_s: float) -> None:
        self._state = state
        self._node_id = node_id
        self._clock = clock
        self._kept_ns = int(kept_s * 10**9)

    async def find(self, name: bytes) -> Made | None:
        """Raises StorageFailed."""
        after_ns = self._clock.utc_ns() - self._kept_ns
        return await self._state.read(partial(_find, name=name, after_ns=after_ns))

    async def force(self) -> None:
        """Have what was found on disk: whoever made it may not have come to that yet. Raises StorageFailed."""
        await self._state.force()

    def note(self, call: Call) -> Note:
        """What writes down what a call makes."""
        now_ns = self._clock.utc_ns()
        return partial(
            _note, call=call, node_id=self._node_id, now_ns=now_ns, until_ns=now_ns - self._kept_ns
        )


def unmake(connection: Connection, object_id: str) -> None:
    """For a writer's job: what was made is taken back, so the call makes it anew."""
    connection.execute("DELETE FROM keyed_calls WHERE object = ?", (object_id,))


def _find(connection: Connection, *, name: bytes, after_ns: int) -> Made | None:
    row = connection.execute(
        "SELECT body_hash, request_id, object FROM keyed_calls WHERE name = ? AND utc_ns > ?",
        (name, after_ns),
    ).fetchone()
    return None if row is None else Made(*row)


def _note(
    connection: Connection, object_id: str, *, call: Call, node_id: str, now_ns: int, until_ns: int
) -> None:
    _forget(connection, until_ns)
    made = _find(connection, name=call.name, after_ns=until_ns)
    if made is not None:
        raise AlreadyMade(made)
    connection.execute("DELETE FROM keyed_calls WHERE name = ?", (call.name,))  # one that is over
    row = (node_id, now_ns, call.name, call.body_hash, call.request_id, object_id)
    connection.execute(_INSERT, row)


def _forget(connection: Connection, until_ns: int) -> None:
    """Some of those that are over."""
    connection.execute(
        "DELETE FROM keyed_calls WHERE seq IN"
        f" (SELECT seq FROM keyed_calls WHERE utc_ns <= ? ORDER BY seq LIMIT {_DELETED_AT_ONCE})",
        (until_ns,),
    )
