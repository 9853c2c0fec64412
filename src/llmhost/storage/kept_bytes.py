"""How many bytes of responses and conversations each scope has, summed by the file itself; and how it gets room."""

from llmhost.core.errors import Forbidden
from llmhost.storage.connect import Connection

ROW_BYTES = 256
"""Of each row beside what it holds: ids, numbers, indexes."""


def _response(row: str) -> str:
    return f"length({row}resource) + coalesce(length({row}events), 0) + {ROW_BYTES}"


def _item(row: str) -> str:
    return f"length({row}item) + {ROW_BYTES}"


def _conversation(row: str) -> str:
    return f"length({row}metadata) + {ROW_BYTES}"


def _more(size: str, source: str) -> str:
    """More bytes of the scope of a row of `source`."""
    return f"""INSERT INTO kept_bytes SELECT scope, {size} FROM {source}
        ON CONFLICT (scope) DO UPDATE SET bytes = bytes + excluded.bytes;"""


def _less(size: str, scope: str) -> str:
    return f"UPDATE kept_bytes SET bytes = bytes - ({size}) WHERE scope = {scope};"


_OF_RESPONSE = "responses WHERE id = NEW.response"
_OF_CONVERSATION = "conversations WHERE id = NEW.conversation"
_RESPONSE_ITEMS = (
    f"(SELECT coalesce(sum({_item('')}), 0) FROM response_items WHERE response = OLD.id)"
)
_CONVERSATION_ITEMS = (
    f"(SELECT coalesce(sum({_item('')}), 0) FROM conversation_items WHERE conversation = OLD.id)"
)

STEP: tuple[str, ...] = (
    "CREATE TABLE kept_bytes (scope TEXT PRIMARY KEY, bytes INTEGER NOT NULL) STRICT",
    f"""INSERT INTO kept_bytes SELECT scope, sum(bytes) FROM (
        SELECT scope, {_response("")} AS bytes FROM responses
        UNION ALL SELECT scope, {_item("i.")} FROM response_items i JOIN responses r ON r.id = i.response
        UNION ALL SELECT scope, {_conversation("")} FROM conversations
        UNION ALL
        SELECT scope, {_item("i.")} FROM conversation_items i JOIN conversations c ON c.id = i.conversation
    ) GROUP BY scope""",
    "CREATE INDEX responses_of_scope ON responses (scope, seq)",
    f"""CREATE TRIGGER response_comes AFTER INSERT ON responses BEGIN
        {_more(_response("NEW."), "responses WHERE id = NEW.id")}
    END""",
    f"""CREATE TRIGGER response_changes AFTER UPDATE OF resource, events ON responses BEGIN
        {_less(f"{_response('OLD.')} - ({_response('NEW.')})", "NEW.scope")}
    END""",
    # Before: afterwards its items are gone, too, and say nothing of its scope
    f"""CREATE TRIGGER response_goes BEFORE DELETE ON responses BEGIN
        {_less(f"{_response('OLD.')} + {_RESPONSE_ITEMS}", "OLD.scope")}
    END""",
    f"""CREATE TRIGGER response_item_comes AFTER INSERT ON response_items BEGIN
        {_more(_item("NEW."), _OF_RESPONSE)}
    END""",
    f"""CREATE TRIGGER conversation_comes AFTER INSERT ON conversations BEGIN
        {_more(_conversation("NEW."), "conversations WHERE id = NEW.id")}
    END""",
    f"""CREATE TRIGGER conversation_changes AFTER UPDATE OF metadata ON conversations BEGIN
        {_less("length(OLD.metadata) - length(NEW.metadata)", "NEW.scope")}
    END""",
    f"""CREATE TRIGGER conversation_goes BEFORE DELETE ON conversations BEGIN
        {_less(f"{_conversation('OLD.')} + {_CONVERSATION_ITEMS}", "OLD.scope")}
    END""",
    f"""CREATE TRIGGER conversation_item_comes AFTER INSERT ON conversation_items BEGIN
        {_more(_item("NEW."), _OF_CONVERSATION)}
    END""",
    f"""CREATE TRIGGER conversation_item_changes AFTER UPDATE OF item ON conversation_items BEGIN
        {_more("length(NEW.item) - length(OLD.item)", _OF_CONVERSATION)}
    END""",
    # Of one that goes with its conversation there is no scope any more
    f"""CREATE TRIGGER conversation_item_goes AFTER DELETE ON conversation_items BEGIN
        {_less(_item("OLD."), "(SELECT scope FROM conversations WHERE id = OLD.conversation)")}
    END""",
)
"""A step of the schema of responses."""

_OLDEST = """
    DELETE FROM responses WHERE seq = (
        SELECT seq FROM responses old WHERE scope = ? AND id IS NOT ? AND NOT is_live
        AND NOT EXISTS (SELECT 1 FROM responses young WHERE young.previous = old.id)
        ORDER BY seq LIMIT 1)"""


def bytes_of(connection: Connection, scope: str) -> int:
    row = connection.execute("SELECT bytes FROM kept_bytes WHERE scope = ?", (scope,)).fetchone()
    return 0 if row is None else int(row[0])


def make_room(
    connection: Connection,
    scope: str,
    most: int,
    spare: str | None = None,
    *,
    is_needed: bool = True,
) -> None:
    """Delete a scope's oldest responses that nothing goes on with, but not `spare`, until the rest has room.

    For a writer's job. Raises Forbidden where that is not enough and `is_needed`: conversations go when their time is
    over alone.
    """
    while bytes_of(connection, scope) > most:
        if not connection.execute(_OLDEST, (scope, spare)).rowcount:
            if not is_needed:
                return
            raise Forbidden(
                f"Your conversations and responses have {most} bytes, and may have no more. Delete some."
            )
