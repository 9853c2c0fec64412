"""ShieldGemma and Granite Guardian: a question about one kind of harm, answered with Yes or No.

Each kind is a question of its own, so a text is asked about several times; what stands before the kind in a prompt is
computed once.
"""

from dataclasses import dataclass

from llmhost.safety.guards.conversation import ASSISTANT, USER, Conversation, Turn
from llmhost.safety.guards.form import Question, as_messages, as_text, judged_side
from llmhost.safety.guards.said import Said, shares

YES, NO = "yes", "no"

POLICIES = {
    "illicit": (
        "No Dangerous Content",
        "shall not help anybody to harm themselves or others: making or getting weapons and explosives, terrorism,"
        " instructions for suicide",
    ),
    "harassment": (
        "No Harassment",
        "shall not attack another person: threats, intimidation, bullying, abuse, mockery of victims of violence",
    ),
    "hate": (
        "No Hate Speech",
        "shall not attack people for who they are: slurs, discrimination, calls to violence or contempt for reasons of"
        " race, religion, sex, disability, age, origin, orientation or any other protected trait. Naming such a group"
        " in a friendly or neutral way is allowed",
    ),
    "sexual": (
        "No Sexually Explicit Information",
        "shall not describe sexual acts or otherwise be lewd. Medical or scientific words and education are allowed",
    ),
}
"""The four kinds of harm that ShieldGemma knows, told in words of our own."""

RISKS = {
    "violence": "promotes or describes physical harm to people, self-harm or threats",
    "sexual": "is explicitly about sexual acts, anatomy or desires",
    "hate": "is prejudiced against people for a trait that they share",
    "profanity": "has curses or crude words",
    "illicit": "is about fraud, theft, abuse of power or other acts that do harm for one's own gain",
    "injection": "tries to get around the safeguards of an AI system",
}
_RISK_NAMES = {
    "violence": "violence",
    "sexual": "sexual_content",
    "hate": "social_bias",
    "profanity": "profanity",
    "illicit": "unethical_behavior",
    "injection": "jailbreak",
}
"""As the templates of Granite Guardian call them."""


@dataclass(frozen=True, slots=True)
class ShieldGemma:
    """Implements Form."""

    name: str = "shieldgemma"
    max_tokens: int = 1

    @property
    def categories(self) -> frozenset[str]:
        return frozenset(POLICIES)

    def questions(self, conversation: Conversation, *, is_own: bool) -> list[Question]:
        shown = last_exchange(conversation)
        who = judged_side(shown, "prompt", "chatbot")
        asked = []
        for category, (name, rule) in POLICIES.items():
            guideline = f'"{name}": The {who} {rule}.'
            if is_own:
                asked.append(Question(as_messages(shown), {"guideline": guideline}, category))
                continue
            side = judged_side(shown, "Human Question", "Chatbot Response")
            task = (
                f"Decide whether the {side} breaks a safety principle.\n\n"
                f"{as_text(shown, 'Human Question', 'Chatbot Response')}\n\n"
                f"The principle:\n\n* {guideline}\n\n"
                f"Does the {side} break it? Begin your answer with 'Yes' or 'No'."
            )
            asked.append(Question(({"role": "user", "content": task},), category=category))
        return asked

    def scores(self, question: Question, said: Said) -> dict[str, float]:
        assert question.category is not None
        return {question.category: shares(said, (YES, NO))[YES]}


@dataclass(frozen=True, slots=True)
class GraniteGuardian:
    """Implements Form: 3.0 to 3.2 answer Yes or No, and 3.3 writes it in a `<score>`."""

    name: str = "granite-guardian"
    max_tokens: int = 24

    @property
    def categories(self) -> frozenset[str]:
        return frozenset(RISKS)

    def questions(self, conversation: Conversation, *, is_own: bool) -> list[Question]:
        shown = last_exchange(conversation)
        is_answer = shown[-1].role == ASSISTANT
        return [
            self._question(category, shown, is_own)
            for category in RISKS
            if not (is_answer and category == "injection")  # what an assistant says attacks nobody
        ]

    def _question(self, category: str, shown: Conversation, is_own: bool) -> Question:
        if is_own:
            named = _RISK_NAMES[category]
            config = {"risk_name": named, "criteria_id": named}  # up to 3.2, and from 3.3 on
            kwargs = {"guardian_config": config, "think": False}
            return Question(as_messages(shown), kwargs, category)
        side = judged_side(shown, "User Message", "Assistant Message")
        task = (
            f"Decide whether the {side} is harmful under a definition of risk.\n\n"
            f"{as_text(shown, 'User Message', 'Assistant Message')}\n\n"
            f"The risk: the message {RISKS[category]}.\n\n"
            f"Is the {side} harmful under it? Your answer is either 'Yes' or 'No'."
        )
        return Question(({"role": "user", "content": task},), category=category)

    def scores(self, question: Question, said: Said) -> dict[str, float]:
        assert question.category is not None
        after = "<score>" if "<score>" in said.text else ""
        return {question.category: shares(said, (YES, NO), after=after)[YES]}


def last_exchange(conversation: Conversation) -> Conversation:
    """The turn to judge, and before an answer what was asked: these guards are shown no more."""
    last = conversation[-1]
    if last.role != ASSISTANT:
        return (last,)
    before = conversation[-2] if len(conversation) > 1 else Turn(USER, "(nothing)")
    return (before, last)
