"""Anthropic's messages as chat templates know them, which are made for OpenAI's.

Results of tools become messages of their own. Neighbours of one role are one turn, as Anthropic has it, because many
templates take none but turns that alternate.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from llmhost.api.loose import loose
from llmhost.api.messages_bodies import WireBlock, WireTurn
from llmhost.api.messages_documents import document_text, search_result_text
from llmhost.api.wire import MAX_LOOSE_SIGNS
from llmhost.core.errors import InvalidValue, UnsupportedParameter

BETWEEN_BLOCKS = "\n\n"
"""Blocks of text from outside; an answer's own are put together as they came."""
FAILED = "Error: "
"""What templates have no other word for: a tool that failed."""

Message = dict[str, Any]


class Turns:
    """The messages of one body. Raises BadRequest that names the block."""

    def __init__(self, system: str | list[WireBlock] | None, turns: Sequence[WireTurn]) -> None:
        self.messages: list[Message] = []
        self._parts: dict[tuple[int, str], list[str]] = {}
        """The texts of each message's fields: adding to one text over and over would copy it as often."""
        self._signs = 0
        self._names: dict[str, str] = {}
        """Of each call by its id, the tool."""
        if system:
            self._add("system", _texts(system, "system"))
        for place, turn in enumerate(turns):
            self._turn(turn, f"messages[{place}].content")
        for (place, field), texts in self._parts.items():
            self.messages[place][field] = "".join(texts)
        last = self.messages[-1] if self.messages else {}
        if last == {"role": "assistant", "content": ""}:
            self.messages.pop()
            last = {}
        self.is_begun = last.get("role") == "assistant" and not last.get("tool_calls")
        """The last message is the beginning of the answer."""
        if not self.messages:
            raise InvalidValue("'messages' holds nothing to answer.", param="messages")

    def _turn(self, turn: WireTurn, at: str) -> None:
        content = turn.content
        if turn.role == "assistant":
            self._answer([WireBlock("text", content)] if isinstance(content, str) else content, at)
        elif turn.role == "user" and not isinstance(content, str):
            self._ask(content, at)
        else:
            self._add(turn.role, _texts(content, at))

    def _add(self, role: str, text: str) -> None:
        if self.messages and self.messages[-1]["role"] == role:
            text = BETWEEN_BLOCKS + text
        else:
            self.messages.append({"role": role, "content": ""})
        self._tell("content", text)

    def _tell(self, field: str, text: str) -> None:
        """More of the last message."""
        self._parts.setdefault((len(self.messages) - 1, field), []).append(text)

    def _ask(self, blocks: Sequence[WireBlock], at: str) -> None:
        """A user's turn: texts, and what tools answered."""
        for place, block in enumerate(blocks):
            here = f"{at}[{place}]"
            if block.type == "tool_result":
                self.messages.append(self._result(block, here))
            else:
                self._add("user", _text(block, here))

    def _result(self, block: WireBlock, at: str) -> Message:
        if block.tool_use_id is None:
            raise _lacks(block, "tool_use_id", at)
        text = _texts(_content(block, f"{at}.content"), f"{at}.content")
        message = {
            "role": "tool",
            "tool_call_id": block.tool_use_id,
            "content": FAILED + text if block.is_error else text,
        }
        if (name := self._names.get(block.tool_use_id)) is not None:
            message["name"] = name
        return message

    def _answer(self, blocks: Sequence[WireBlock], at: str) -> None:
        """A model's turn: thoughts, text and calls."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": ""})
        message = self.messages[-1]
        for place, block in enumerate(blocks):
            here = f"{at}[{place}]"
            match block.type:
                case "tool_use":
                    message.setdefault("tool_calls", []).append(self._call(block, here))
                case "thinking":
                    if block.thinking is None:
                        raise _lacks(block, "thinking", here)
                    self._tell("reasoning_content", block.thinking)
                case "redacted_thinking":  # another server's, which nobody can read
                    pass
                case _:
                    self._tell("content", _text(block, here))

    def _call(self, block: WireBlock, at: str) -> Message:
        for field in ("id", "name"):
            if getattr(block, field) is None:
                raise _lacks(block, field, at)
        arguments = bytes(block.input)
        if not arguments.startswith(b"{"):
            raise InvalidValue(
                "A block of type 'tool_use' needs 'input', an object.", param=f"{at}.input"
            )
        self._signs += sum(arguments.count(sign) for sign in (b"{", b"[", b","))
        if self._signs > MAX_LOOSE_SIGNS:
            raise InvalidValue(
                f"The 'input' of all calls together has more than {MAX_LOOSE_SIGNS} braces, brackets and commas.",
                param=f"{at}.input",
            )
        assert block.id is not None and block.name is not None
        self._names[block.id] = block.name
        function = {"name": block.name, "arguments": arguments.decode("utf-8", "replace")}
        return {"id": block.id, "type": "function", "function": function}


def _content(block: WireBlock, at: str) -> str | list[WireBlock]:
    """What a tool gave back; nothing is the empty text."""
    if bytes(block.content).startswith(b'"'):
        return loose(block.content, str, at) or ""
    return loose(block.content, list[WireBlock], at) or ""


def _texts(content: str | Sequence[WireBlock], at: str) -> str:
    if isinstance(content, str):
        return content
    return BETWEEN_BLOCKS.join(_each_text(content, at))


def _each_text(blocks: Sequence[WireBlock], at: str) -> Iterator[str]:
    for place, block in enumerate(blocks):
        yield _text(block, f"{at}[{place}]")


def _text(block: WireBlock, at: str) -> str:
    if block.type in _ELSEWHERE:
        raise InvalidValue(
            f"Content of type {block.type!r} does not belong here, but in {_ELSEWHERE[block.type]}.",
            param=f"{at}.type",
        )
    if block.type == "document":
        return document_text(block, at)
    if block.type == "search_result":
        return search_result_text(block, at)
    if block.type != "text":
        raise UnsupportedParameter(
            f"Content of type {block.type!r} is not supported; this server takes text, and documents that are text.",
            param=f"{at}.type",
        )
    if block.text is None:
        raise _lacks(block, "text", at)
    return block.text


_ELSEWHERE = {
    "tool_use": "a message of the assistant",
    "thinking": "a message of the assistant",
    "redacted_thinking": "a message of the assistant",
    "tool_result": "a message of the user",
}


def _lacks(block: WireBlock, field: str, at: str) -> InvalidValue:
    return InvalidValue(f"A block of type {block.type!r} needs {field!r}.", param=f"{at}.{field}")
