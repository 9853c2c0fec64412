"""What callers have this node keep for them: the file, whose tables, and who forgets."""

from contextlib import AsyncExitStack
from typing import Protocol

from llmhost.api.responses.desk import Desk, lost
from llmhost.core.ports import Clock
from llmhost.storage import batches, files, keyed_calls, responses, stored_chats
from llmhost.storage.conversations import ConversationStore
from llmhost.storage.node import DataDir
from llmhost.storage.responses import ResponseStore
from llmhost.storage.schema import Schema
from llmhost.storage.state import State

SCHEMAS: tuple[Schema, ...] = (
    responses.SCHEMA,
    stored_chats.SCHEMA,
    files.SCHEMA,
    batches.SCHEMA,
    keyed_calls.SCHEMA,
)
"""Of all who keep something in `state.db`."""


class Forgets(Protocol):
    """Keeps something for callers, for as long as `[state]` says."""

    async def forget(self, before_ns: int) -> int:
        """Delete what was made before, a few rows at a time; returns how many."""
        ...


def open_state(data_dir: DataDir, closing: AsyncExitStack) -> State:
    """Open the file; `closing` closes it. Blocks."""
    state = State(data_dir.state_db, SCHEMAS)
    closing.callback(state.close)
    return state


def open_responses(data_dir: DataDir, state: State, clock: Clock, most_bytes: int) -> Desk:
    """Those that a process left behind have failed. `most_bytes` is what each team may have. Blocks."""
    node_id = data_dir.node_id
    store = ResponseStore(state, node_id=node_id, clock=clock, most_bytes=most_bytes)
    store.end_orphans(lost)
    conversations = ConversationStore(state, node_id=node_id, clock=clock, most_bytes=most_bytes)
    return Desk(store, conversations, data_dir.state_secret)
