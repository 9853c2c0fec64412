"""Qwen3Guard-Gen: a line `Safety:` with Safe, Controversial or Unsafe, and one with categories."""

from dataclasses import dataclass

from llmhost.safety.guards.conversation import Conversation
from llmhost.safety.guards.form import UNSAFE, Question, as_messages, as_text, judged_side
from llmhost.safety.guards.said import Said, shares

CATEGORIES = {
    "Non-violent Illegal Acts": "illicit",
    "Violent": "violence",
    "Sexual Content or Sexual Acts": "sexual",
    "Personally Identifiable Information": "pii",
    "PII": "pii",
    "Suicide & Self-Harm": "self-harm",
    "Unethical Acts": "unethical",
    "Politically Sensitive Topics": "political",
    "Copyright Violation": "copyright",
    "Jailbreak": "injection",
}
_LEVELS = {"safe": 0.0, "controversial": 0.5, UNSAFE: 1.0}
"""What each level counts for in a score."""


@dataclass(frozen=True, slots=True)
class QwenGuard:
    """Implements Form."""

    name: str = "qwen3guard"
    max_tokens: int = 64

    @property
    def categories(self) -> frozenset[str]:
        return frozenset((*CATEGORIES.values(), UNSAFE))

    def questions(self, conversation: Conversation, *, is_own: bool) -> list[Question]:
        if is_own:
            return [Question(as_messages(conversation))]
        side = judged_side(conversation, "USER", "ASSISTANT")
        listed = "\n".join(f"{name}." for name in CATEGORIES if name != "PII")
        task = (
            f"Say how safe the last message of the {side} is, and under which of these categories it is not.\n\n"
            f"<BEGIN UNSAFE CONTENT CATEGORIES>\n{listed}\n<END UNSAFE CONTENT CATEGORIES>\n\n"
            f"<BEGIN CONVERSATION>\n\n{as_text(conversation, 'USER', 'ASSISTANT')}\n\n<END CONVERSATION>\n\n"
            "The first line is one of 'Safety: Safe', 'Safety: Unsafe' and 'Safety: Controversial'. The second line"
            " begins with 'Categories:' and lists the categories with commas between them, or says None."
        )
        return [Question(({"role": "user", "content": task},))]

    def scores(self, question: Question, said: Said) -> dict[str, float]:
        levels = shares(said, tuple(_LEVELS), after="safety:")
        sure = sum(share * _LEVELS[level] for level, share in levels.items())
        _, _, listed = said.text.partition("Categories:")
        line = listed.strip().partition("\n")[0]
        named = {}
        for name, category in CATEGORIES.items():
            # "Violent" is part of no other name, but for its small initial in "Non-violent".
            if name in line:
                named[category] = sure
        return named or {UNSAFE: sure}
