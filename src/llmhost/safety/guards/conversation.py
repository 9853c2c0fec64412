"""A conversation as guards are shown it: turns of a user and an assistant that alternate, the user's first.

Their templates know no other roles. Whatever else a caller wrote (system messages, results of tools) is shown as the
user's, because the user may have written it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

USER, ASSISTANT = "user", "assistant"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said."""

    role: str
    text: str


Conversation = tuple[Turn, ...]
"""The last turn is the one to judge; those before it are its context."""


def asked_of_messages(messages: Sequence[Mapping[str, Any]]) -> list[Conversation]:
    """Each of the user's turns with what came before it: an earlier one is as much the caller's as the last. So is an
    assistant's at the end, which the answer goes on with."""
    turns = turns_of(messages)
    last = len(turns) - 1
    return [tuple(turns[: i + 1]) for i, turn in enumerate(turns) if turn.role == USER or i == last]


def answered(
    messages: Sequence[Mapping[str, Any]], answer: str, *, is_continued: bool = False
) -> Conversation:
    """A conversation that ends with an answer, which is to be judged.

    `is_continued`: the answer goes on with the last message."""
    turns = turns_of(messages)
    if turns and turns[-1].role == ASSISTANT:  # most templates refuse two in a row
        joint = "" if is_continued else "\n"
        answer = f"{turns.pop().text}{joint}{answer}"
    return (*turns, Turn(ASSISTANT, answer))


def alone(text: str) -> Conversation:
    """A text without a conversation."""
    return (Turn(USER, text),)


def turns_of(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Texts of messages, neighbours of one side put together."""
    turns: list[Turn] = []
    for message in messages:
        role = ASSISTANT if message.get("role") == ASSISTANT else USER
        text = "\n".join(_texts(message))
        if not text.strip():
            continue
        if turns and turns[-1].role == role:
            turns[-1] = Turn(role, f"{turns[-1].text}\n{text}")
        elif not turns and role == ASSISTANT:
            turns.append(Turn(USER, text))  # no template begins with an answer
        else:
            turns.append(Turn(role, text))
    return turns


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(thoughts := message.get("reasoning_content"), str):
        yield thoughts
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]
    for call in message.get("tool_calls") or ():
        if isinstance(call, dict) and isinstance(function := call.get("function"), dict):
            yield f"{function.get('name')}({function.get('arguments')})"
