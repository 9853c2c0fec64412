"""What stored chats look like on the wire, and what is kept of a body for them."""

from dataclasses import dataclass
from typing import Any

import msgspec

from llmhost.api.bodies import ChatBody, Metadata, StreamOptions, WireMessage, WirePart
from llmhost.api.file_parts import name_of_file
from llmhost.api.loose import NULL, Raw, loose
from llmhost.core.errors import MissingParameter

NO_OPTIONS = StreamOptions()


@dataclass(frozen=True, slots=True)
class Wish:
    """That a chat be stored, and what of its body is."""

    metadata: dict[str, str]
    messages: tuple[WireMessage, ...]
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChatBeside:
    """What the answer to a chat must know beside its request."""

    options: StreamOptions = NO_OPTIONS
    wish: Wish | None = None


NOTHING_BESIDE = ChatBeside()
_SETTINGS = (
    *("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed"),
    *("tools", "tool_choice", "response_format"),
)


def beside_of(body: ChatBody) -> ChatBeside:
    if not body.store:
        return NOTHING_BESIDE if body.stream_options is None else ChatBeside(body.stream_options)
    settings = {name: getattr(body, name) for name in _SETTINGS}
    settings = {name: None if value is NULL else value for name, value in settings.items()}
    settings["input_user"] = body.user
    wish = Wish(body.metadata or {}, tuple(body.messages or ()), settings)
    return ChatBeside(body.stream_options or NO_OPTIONS, wish)


class StoredMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of the messages that were asked."""

    id: str
    role: str
    content: str | None
    content_parts: list[dict[str, str]] | None
    refusal: str | None
    name: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: Raw | msgspec.UnsetType = msgspec.UNSET
    tool_call_id: str | msgspec.UnsetType = msgspec.UNSET


def stored_message(message: WireMessage, id_: str) -> StoredMessage:
    """OpenAI's shape, for the text parts that there can be."""
    content, parts = message.content, None
    if isinstance(content, list):
        parts = [{"type": "text", "text": _shown(part)} for part in content]
        content = "".join(part["text"] for part in parts)
    return StoredMessage(
        id=id_,
        role=message.role,
        content=content,
        content_parts=parts,
        refusal=message.refusal,
        name=msgspec.UNSET if message.name is None else message.name,
        tool_calls=msgspec.UNSET if message.tool_calls is NULL else message.tool_calls,
        tool_call_id=msgspec.UNSET if message.tool_call_id is None else message.tool_call_id,
    )


def _shown(part: WirePart) -> str:
    """Files are named, and not repeated."""
    if part.file is not None:
        return name_of_file(part.file)
    return part.text or part.refusal or ""


class Relabel(msgspec.Struct, frozen=True):
    """POST /v1/chat/completions/{id}."""

    metadata: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET

    @property
    def labels(self) -> dict[str, str]:
        """Raises BadRequest."""
        if self.metadata is msgspec.UNSET:
            raise MissingParameter("metadata")
        return loose(Raw(msgspec.json.encode(self.metadata)), Metadata, "metadata") or {}


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "chat.completion.deleted"
    deleted: bool = True


class ChatPage(msgspec.Struct, frozen=True, kw_only=True):
    """Chats or messages, in order. More come `after` `last_id`."""

    object: str = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page_object(data: list[dict[str, Any]], *, has_more: bool) -> ChatPage:
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return ChatPage(data=data, first_id=first, last_id=last, has_more=has_more)
