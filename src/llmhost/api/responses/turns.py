"""Items as chat templates know them, and as they are kept: messages of OpenAI's chats, and items with ids.

A model's thoughts, words and calls are items of their own here and one message there. Another's words are never
joined, but for instructions, which most templates take in one place only.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from llmhost.api.file_parts import text_of_file
from llmhost.api.loose import Raw, loose
from llmhost.api.responses.bodies import MAX_ITEMS, WireItem, WirePart
from llmhost.api.responses.namespaces import flat_name
from llmhost.api.responses.sealed import Seal
from llmhost.core.errors import InvalidValue, MissingParameter, UnsupportedParameter
from llmhost.core.ids import new_id

Item = dict[str, Any]
Message = dict[str, Any]

BETWEEN_TEXTS = "\n\n"
SUMMARY = "Summary of the conversation so far:\n"
"""What stands before a conversation that was compacted."""
FILE = "input_file"
REFERENCE = "item_reference"
INSTRUCTING = ("system", "developer")

_TEXTS = {"input_text", "output_text", "text", "summary_text", "reasoning_text", "refusal"}
_PREFIXES = {
    "message": "msg_",
    "function_call": "fc_",
    "function_call_output": "fco_",
    "custom_tool_call": "ctc_",
    "custom_tool_call_output": "ctco_",
    "reasoning": "rs_",
    "compaction": "cmp_",
}
"""Of ids that are given to items that came without."""
_TEXT_OR_ITEMS: Any = str | list[Raw]
_encode = msgspec.json.encode


def read_items(raw: Raw, param: str = "input") -> list[WireItem]:
    """An input: a text, which is a user's message, or items. Raises BadRequest that names the item."""
    given = loose(raw, _TEXT_OR_ITEMS, param)
    if given is None:
        return []
    if isinstance(given, str):
        return [WireItem(role="user", content=given)]
    if len(given) > MAX_ITEMS:
        raise InvalidValue(
            f"'{param}' holds {len(given)} items; {MAX_ITEMS} are allowed.", param=param
        )
    return [_read_item(each, f"{param}[{place}]") for place, each in enumerate(given)]


def _read_item(raw: Raw, at: str) -> WireItem:
    try:
        return msgspec.json.decode(raw, type=WireItem)
    except msgspec.ValidationError:
        loose(raw, WireItem, at)  # says what is wrong, and where
        raise InvalidValue(f"{at}: Expected 'object', got 'null'", param=at) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidValue(f"'{at}' is not valid JSON: {error}", param=at) from None


def is_reference(item: WireItem) -> bool:
    """It stands for an item that is kept. OpenAI's may come without their type, and hold nothing but an id then."""
    is_bare = item.type is None and item.role is None and item.content is None
    return item.type == REFERENCE or (is_bare and item.id is not None)


def kind_of(item: WireItem) -> str:
    return item.type or "message"


def kept_item(item: WireItem, at: str) -> Item:
    """An item as it is kept and listed: with an id, and with its content in parts. Raises BadRequest."""
    kind = kind_of(item)
    known = _begun(item, kind)
    match kind:
        case "message":
            role = _needed(item.role, "role", at)
            inner = "output_text" if role == "assistant" else "input_text"
            parts = [_kept_part(part, inner) for part in _parts(item.content, at, inner)]
            known |= {"role": role, "status": item.status or "completed", "content": parts}
            if item.phase is not None:
                known["phase"] = item.phase
        case "function_call":
            known |= {
                "call_id": _needed(item.call_id, "call_id", at),
                "name": _needed(item.name, "name", at),
                "arguments": _needed(item.arguments, "arguments", at),
                "status": item.status or "completed",
            }
        case "custom_tool_call":
            known |= {
                "call_id": _needed(item.call_id, "call_id", at),
                "name": _needed(item.name, "name", at),
                "input": _needed(item.input, "input", at),
            }
        case "function_call_output" | "custom_tool_call_output":
            output = _needed(item.output, "output", at)
            _texts(output, f"{at}.output")
            known |= {
                "call_id": _needed(item.call_id, "call_id", at),
                "output": output if isinstance(output, str) else _plain(output),
                "status": item.status or "completed",
            }
        case "reasoning":
            known["summary"] = _plain(item.summary or [])
            if item.content:
                known["content"] = _plain(_parts(item.content, at, "reasoning_text"))
            if item.encrypted_content is not None:
                known["encrypted_content"] = item.encrypted_content
        case "compaction":
            known["encrypted_content"] = _needed(item.encrypted_content, "encrypted_content", at)
        case _:
            raise UnsupportedParameter(
                f"Items of type {kind!r} are not supported: this server runs no tools itself.",
                param=f"{at}.type",
            )
    return known


def _begun(item: WireItem, kind: str) -> Item:
    known: Item = {"id": item.id or new_id(_PREFIXES.get(kind, "item_")), "type": kind}
    if item.namespace is not None and item.call_id is not None:
        known["namespace"] = item.namespace
    return known


def _plain(parts: Sequence[WirePart]) -> list[Item]:
    return [_kept_part(part, part.type) for part in parts]


def _kept_part(part: WirePart, kind: str) -> Item:
    if part.type == "refusal":
        return {"type": "refusal", "refusal": part.refusal or ""}
    if part.type == FILE:
        names = ("file_data", "file_id", "filename")
        return {"type": FILE, **{n: v for n in names if (v := getattr(part, n)) is not None}}
    known: Item = {"type": kind, "text": part.text or ""}
    if kind == "output_text":
        known |= {"annotations": [], "logprobs": []}
    return known


class Turns:
    """Messages, as items are added. Raises BadRequest that names the item."""

    def __init__(self, seal: Seal, instructions: str | None = None) -> None:
        self.messages: list[Message] = []
        self._seal = seal
        self._names: dict[str, str] = {}
        """Of each call by its id, the tool."""
        self._summary = ""
        """Of what was compacted, for the next user's message."""
        self._instructions = instructions

    def add_all(self, items: Iterable[WireItem], param: str = "input") -> None:
        for place, item in enumerate(items):
            self.add(item, f"{param}[{place}]")

    def add_kept(self, items: Iterable[bytes], param: str) -> None:
        """Items as they were kept."""
        for place, raw in enumerate(items):
            self.add(msgspec.json.decode(raw, type=WireItem), f"{param}[{place}]")

    def finish(self) -> tuple[Message, ...]:
        """All of them, instructions first."""
        if self._summary:
            self._message("user", "")
        for message in self.messages:
            if "reasoning_content" in message:
                message["reasoning_content"] = BETWEEN_TEXTS.join(message["reasoning_content"])
        if self._instructions:
            before = [self._instructions]
            while self.messages and self.messages[0]["role"] in INSTRUCTING:
                before.append(self.messages.pop(0)["content"])
            first = {"role": "system", "content": BETWEEN_TEXTS.join(before)}
            self.messages.insert(0, first)
        return tuple(self.messages)

    def add(self, item: WireItem, at: str) -> None:
        match kind_of(item):
            case "message":
                role = _needed(item.role, "role", at)
                if role == "assistant":
                    self._say(_texts(item.content or "", f"{at}.content"))
                else:
                    content = _needed(item.content, "content", at)
                    self._message(role, _texts(content, f"{at}.content"))
            case "reasoning":
                self._think(self._thoughts(item, at))
            case "function_call":
                arguments = _needed(item.arguments, "arguments", at)
                self._call(item, at, {"arguments": arguments})
            case "custom_tool_call":
                text = _needed(item.input, "input", at)
                self._call(item, at, {"arguments": _encode({"input": text}).decode()})
            case "function_call_output" | "custom_tool_call_output":
                self._result(item, at)
            case "compaction":
                sealed = _needed(item.encrypted_content, "encrypted_content", at)
                self._summary = SUMMARY + self._seal.open(sealed, f"{at}.encrypted_content")
            case kind:
                raise UnsupportedParameter(
                    f"Items of type {kind!r} are not supported: this server runs no tools itself.",
                    param=f"{at}.type",
                )

    def _message(self, role: str, text: str) -> None:
        if self._summary and role == "user":
            text = BETWEEN_TEXTS.join(filter(None, (self._summary, text)))
            self._summary = ""
        self.messages.append({"role": role, "content": text})

    def _answer(self, *, is_new: bool) -> Message:
        """The assistant's message that goes on, or a new one."""
        if is_new or not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": ""})
        return self.messages[-1]

    def _say(self, text: str) -> None:
        last = self.messages[-1] if self.messages else {}
        message = self._answer(is_new=bool(last.get("content") or last.get("tool_calls")))
        message["content"] = text

    def _think(self, text: str) -> None:
        last = self.messages[-1] if self.messages else {}
        message = self._answer(is_new=bool(last.get("content") or last.get("tool_calls")))
        if text:  # joined at the end: there may be thousands
            message.setdefault("reasoning_content", []).append(text)

    def _thoughts(self, item: WireItem, at: str) -> str:
        parts = item.content or item.summary
        if item.encrypted_content is not None:
            return self._seal.open(item.encrypted_content, f"{at}.encrypted_content")
        if any(isinstance(part, WirePart) and part.type == FILE for part in parts or ()):
            raise UnsupportedParameter(
                "Thoughts are text, and hold no files.", param=f"{at}.content"
            )
        return _texts(parts or "", f"{at}.content")

    def _call(self, item: WireItem, at: str, arguments: dict[str, str]) -> None:
        call_id = _needed(item.call_id, "call_id", at)
        name = flat_name(item.namespace, _needed(item.name, "name", at))
        self._names[call_id] = name
        function = {"name": name, **arguments}
        call = {"id": call_id, "type": "function", "function": function}
        self._answer(is_new=False).setdefault("tool_calls", []).append(call)

    def _result(self, item: WireItem, at: str) -> None:
        call_id = _needed(item.call_id, "call_id", at)
        output = _needed(item.output, "output", at)
        message = {
            "role": "tool",
            "tool_call_id": call_id,
            "content": _texts(output, f"{at}.output"),
        }
        if (name := self._names.get(call_id)) is not None:
            message["name"] = name
        self.messages.append(message)


def _parts(content: str | Sequence[WirePart] | None, at: str, kind: str) -> list[WirePart]:
    """Content as parts, each of which is a text. Raises BadRequest."""
    if content is None:
        return []
    if isinstance(content, str):
        return [WirePart(kind, content)]
    for place, part in enumerate(content):
        _text(part, f"{at}.content[{place}]")
    return list(content)


def _texts(content: str | Sequence[WirePart], at: str) -> str:
    if isinstance(content, str):
        return content
    return "".join(_each_text(content, at))


def _each_text(parts: Sequence[WirePart], at: str) -> Iterator[str]:
    for place, part in enumerate(parts):
        yield _text(part, f"{at}[{place}]")


def _text(part: WirePart, at: str) -> str:
    if part.type == FILE:
        return text_of_file(part, at)
    if part.type not in _TEXTS:
        raise UnsupportedParameter(
            f"Content of type {part.type!r} is not supported; this server takes text, and files that are text.",
            param=f"{at}.type",
        )
    field = "refusal" if part.type == "refusal" else "text"
    text: str | None = getattr(part, field)
    if text is None:
        raise InvalidValue(
            f"A part of type {part.type!r} needs {field!r}, a string.", param=f"{at}.{field}"
        )
    return text


def _needed(value: Any, field: str, at: str) -> Any:
    if value is None:
        raise MissingParameter(f"{at}.{field}")
    return value
