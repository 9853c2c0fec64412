"""The messages of a chat, from OpenAI's words into those of chat templates.

Content is text here, whatever parts it came in. What older clients say in fields that have newer names is put into
those.
"""

import json
from operator import attrgetter
from typing import Any

from llmhost.api.bodies import WireMessage, WirePart
from llmhost.api.file_parts import text_of_file
from llmhost.api.loose import NULL, loose
from llmhost.core.errors import InvalidValue, MissingParameter, UnsupportedParameter

_more = attrgetter(
    "name",
    "tool_call_id",
    "tool_calls",
    "function_call",
    "refusal",
    "reasoning",
    "reasoning_content",
)
_NO_MORE = (None, None, NULL, NULL, None, None, None)


def is_bare(message: WireMessage) -> bool:
    """It is text, and nothing beside."""
    content = message.content
    if content is None or _more(message) != _NO_MORE:
        return False
    return isinstance(content, str) or all(part.type == "text" for part in content)


def message_of(message: WireMessage, place: int) -> dict[str, Any]:
    """Raises BadRequest."""
    content, at = message.content, f"messages[{place}]"
    if type(content) is str and _more(message) == _NO_MORE:  # as most are
        return {"role": message.role, "content": content}
    if content is None and message.role not in ("assistant", "function"):
        raise InvalidValue(
            f"A message of role '{message.role}' needs content.", param=f"{at}.content"
        )
    if isinstance(content, list):
        content = text_of(content, f"{at}.content")
    extras: dict[str, Any] = {
        key: value
        for key in ("name", "tool_call_id")
        if (value := getattr(message, key)) is not None
    }
    if calls := _calls(message, at):
        extras["tool_calls"] = calls
    elif content is None:
        content = message.refusal or ""  # templates would write None
    thoughts = message.reasoning if message.reasoning is not None else message.reasoning_content
    if thoughts:
        extras["reasoning_content"] = thoughts
    return {"role": message.role, "content": content, **extras}


def text_of(parts: list[WirePart], at: str) -> str:
    """What parts say together. Raises BadRequest for those that are no text."""
    return "".join(_part_text(part, f"{at}[{i}]") for i, part in enumerate(parts))


def _part_text(part: WirePart, at: str) -> str:
    kind = part.type
    if kind == "file":
        if part.file is None:
            raise MissingParameter(f"{at}.file")
        return text_of_file(part.file, f"{at}.file")
    field = "refusal" if kind == "refusal" else "text"
    if kind not in ("text", "input_text", "refusal"):
        raise UnsupportedParameter(
            f"Content of type {kind!r} is not supported; this server takes text, and files that are text.",
            param=f"{at}.type",
        )
    text = part.refusal if kind == "refusal" else part.text
    if text is None:
        raise InvalidValue(
            f"A part of type {kind!r} needs {field!r}, a string.", param=f"{at}.{field}"
        )
    return text


def _calls(message: WireMessage, at: str) -> list[dict[str, Any]]:
    calls = loose(message.tool_calls, list[dict[str, Any]], f"{at}.tool_calls")
    if not calls and message.function_call is not NULL:
        older = loose(message.function_call, dict[str, Any], f"{at}.function_call")
        calls = [{"type": "function", "function": older}] if older else []
    return [_as_function(call) for call in calls or ()]


def _as_function(call: dict[str, Any]) -> dict[str, Any]:
    """Templates know calls of functions: what a custom tool was given is an argument of that name."""
    custom = call.get("custom")
    if call.get("type") != "custom" or not isinstance(custom, dict):
        return call
    rest = {key: value for key, value in call.items() if key != "custom"}
    arguments = json.dumps({"input": custom.get("input")}, ensure_ascii=False)
    return {
        **rest,
        "type": "function",
        "function": {"name": custom.get("name"), "arguments": arguments},
    }
