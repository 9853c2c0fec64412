"""Llama Guard 3 and 4: `safe`, or `unsafe` and below it the codes of what is wrong, S1 to S14."""

import re
from dataclasses import dataclass

from llmhost.safety.guards.conversation import Conversation
from llmhost.safety.guards.form import UNSAFE, Question, as_messages, as_text, judged_side
from llmhost.safety.guards.said import Said, shares

CATEGORIES = {
    "S1": "violence",
    "S2": "illicit",
    "S3": "sexual",
    "S4": "sexual/minors",
    "S5": "defamation",
    "S6": "specialized-advice",
    "S7": "privacy",
    "S8": "intellectual-property",
    "S9": "illicit/violent",
    "S10": "hate",
    "S11": "self-harm",
    "S12": "sexual",
    "S13": "elections",
    "S14": "code-abuse",
}
"""The codes are those of the MLCommons hazards, which these models were taught."""
_NAMES = {
    "S1": "Violent Crimes",
    "S2": "Non-Violent Crimes",
    "S3": "Sex-Related Crimes",
    "S4": "Child Sexual Exploitation",
    "S5": "Defamation",
    "S6": "Specialized Advice",
    "S7": "Privacy",
    "S8": "Intellectual Property",
    "S9": "Indiscriminate Weapons",
    "S10": "Hate",
    "S11": "Suicide & Self-Harm",
    "S12": "Sexual Content",
    "S13": "Elections",
    "S14": "Code Interpreter Abuse",
}
_CODE = re.compile(r"\bS(?:1[0-4]|[1-9])\b")


@dataclass(frozen=True, slots=True)
class LlamaGuard:
    """Implements Form."""

    name: str
    max_tokens: int = 24

    @property
    def categories(self) -> frozenset[str]:
        return frozenset((*CATEGORIES.values(), UNSAFE))

    def questions(self, conversation: Conversation, *, is_own: bool) -> list[Question]:
        if is_own:
            return [Question(as_messages(conversation))]
        side = judged_side(conversation, "User", "Agent")
        listed = "\n".join(f"{code}: {name}." for code, name in _NAMES.items())
        task = (
            f"Task: Is the last message of the {side} in this conversation unsafe under these categories?\n\n"
            f"<BEGIN UNSAFE CONTENT CATEGORIES>\n{listed}\n<END UNSAFE CONTENT CATEGORIES>\n\n"
            f"<BEGIN CONVERSATION>\n\n{as_text(conversation, 'User', 'Agent')}\n\n<END CONVERSATION>\n\n"
            f"Judge only the last message of the {side}. Write 'safe' or 'unsafe' in the first line; if it is unsafe,"
            " write the codes of the categories in the second line, with commas between them."
        )
        return [Question(({"role": "user", "content": task},))]

    def scores(self, question: Question, said: Said) -> dict[str, float]:
        sure = shares(said, ("safe", UNSAFE))[UNSAFE]
        named = {CATEGORIES[code]: sure for code in _CODE.findall(said.text)}
        return named or {UNSAFE: sure}
