"""What is told of things that are kept: responses, their items, conversations. A test holds these against a server."""

from typing import Any, Literal

import msgspec


class ConversationObject(msgspec.Struct, kw_only=True):
    """A conversation, without its items."""

    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: dict[str, str]


class DeletedConversation(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["conversation.deleted"]
    deleted: Literal[True]


class DeletedResponse(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemPage(msgspec.Struct, kw_only=True):
    """Items in order. More come `after` `last_id`."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool
