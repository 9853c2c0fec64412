"""What all families of guards that generate text have in common."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmhost.safety.guards.conversation import ASSISTANT, Conversation
from llmhost.safety.guards.said import Said

UNSAFE = "unsafe"
"""The category of what a guard objects to without saying why."""

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to ask a guard: messages for the model's chat template, and that template's own switches."""

    messages: tuple[Message, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    category: str | None = None
    """The one that it asks about; None where the answer names them."""


class Form(Protocol):
    """How one family of guards is asked."""

    @property
    def name(self) -> str:
        """As `guard` in models.toml names it."""

    @property
    def max_tokens(self) -> int:
        """Of an answer."""

    @property
    def categories(self) -> frozenset[str]:
        """All that it may find."""

    def questions(self, conversation: Conversation, *, is_own: bool) -> list[Question]:
        """What to ask about the last turn. `is_own` says that the model's template writes the task itself; otherwise
        it is written here."""

    def scores(self, question: Question, said: Said) -> dict[str, float]:
        """Categories and how sure the guard is of each, 0 to 1. Raises SafetyUnavailable where it can't be read."""


def as_messages(conversation: Conversation) -> tuple[Message, ...]:
    """For a template of the family's own. Content is in parts: some of them read nothing else."""
    return tuple(
        {"role": turn.role, "content": [{"type": "text", "text": turn.text}]}
        for turn in conversation
    )


def judged_side(conversation: Conversation, user: str, assistant: str) -> str:
    """What the side is called whose turn is judged."""
    return assistant if conversation[-1].role == ASSISTANT else user


def as_text(conversation: Conversation, user: str, assistant: str) -> str:
    """The turns one below the other, each under the name of its side."""
    return "\n\n".join(
        f"{assistant if turn.role == ASSISTANT else user}: {turn.text.strip()}"
        for turn in conversation
    )
