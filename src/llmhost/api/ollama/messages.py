"""Ollama's messages as chat templates know them, which are made for OpenAI's.

Ollama's calls have no ids, and what tools answer is found by their names and its place. Templates want ids, so they
are given some.
"""

from collections import deque
from collections.abc import Sequence
from itertools import product
from typing import Any

from llmhost.api.loose import asks, loose, said
from llmhost.api.ollama.bodies import OllamaCall, OllamaMessage
from llmhost.api.wire import MAX_LOOSE_SIGNS
from llmhost.core.errors import InvalidValue, UnsupportedParameter

Message = dict[str, Any]


def messages_of(given: Sequence[OllamaMessage]) -> tuple[Message, ...]:
    """Raises BadRequest that names the message."""
    turns = _Turns()
    return tuple(turns.message(message, f"messages[{i}]") for i, message in enumerate(given))


class _Turns:
    def __init__(self) -> None:
        self._open: dict[int, tuple[str, str]] = {}
        """Calls that no tool has answered, by number: their ids and the tools' names."""
        self._queues: dict[tuple[str | None, str | None], deque[int]] = {}
        """Calls by their ids, by their names, by both and by neither, in order, those that are answered among them."""
        self._count = 0
        self._signs = 0

    def message(self, message: OllamaMessage, at: str) -> Message:
        if asks(message.images):
            raise UnsupportedParameter(
                "Images are not supported; this server takes text.", param=f"{at}.images"
            )
        made: Message = {"role": message.role, "content": message.content}
        calls = loose(message.tool_calls, list[OllamaCall], f"{at}.tool_calls")
        if calls:
            made["tool_calls"] = [
                self._call(call, f"{at}.tool_calls[{i}]") for i, call in enumerate(calls)
            ]
        if message.thinking:
            made["reasoning_content"] = message.thinking
        if message.role == "tool":
            made |= self._answered(message)
        if message.content is None:
            if message.role != "assistant":
                raise InvalidValue(
                    f"A message of role '{message.role}' needs content.", param=f"{at}.content"
                )
            made["content"] = None if calls else ""
        return made

    def _call(self, call: OllamaCall, at: str) -> Message:
        arguments = bytes(call.function.arguments)
        if said(call.function.arguments) == b"null":
            arguments = b"{}"
        if not arguments.startswith(b"{"):
            raise InvalidValue(
                "The arguments of a call are an object.", param=f"{at}.function.arguments"
            )
        self._signs += sum(arguments.count(sign) for sign in (b"{", b"[", b","))
        if self._signs > MAX_LOOSE_SIGNS:
            raise InvalidValue(
                f"The arguments of all calls together have more than {MAX_LOOSE_SIGNS} braces, brackets and commas.",
                param=f"{at}.function.arguments",
            )
        self._count += 1
        name = call.id or f"call{self._count:05d}"
        self._open[self._count] = (name, call.function.name)
        for key in product((None, name), (None, call.function.name)):
            self._queues.setdefault(key, deque()).append(self._count)
        function = {
            "name": call.function.name,
            "arguments": arguments.decode("utf-8", "replace"),
        }
        return {"id": name, "type": "function", "function": function}

    def _answered(self, message: OllamaMessage) -> Message:
        """Which call a tool's message answers: the one that it names, or the first that is open."""
        wanted = message.tool_call_id
        queue = self._queues.get((wanted, message.tool_name), ())
        while queue:
            if (found := self._open.pop(queue.popleft(), None)) is not None:
                return {"tool_call_id": found[0], "name": found[1]}
        names = {"tool_call_id": wanted, "name": message.tool_name}
        return {key: value for key, value in names.items() if value is not None}
