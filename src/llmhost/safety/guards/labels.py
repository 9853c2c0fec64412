"""What the labels of a sequence classifier mean, in the names of categories that policies use."""

import re
from collections.abc import Mapping, Sequence

from llmhost.core.errors import InvalidValue

OPENAI = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
"""The categories that OpenAI's moderation answers with."""

HARMLESS = frozenset(
    (
        *("benign", "clean", "harmless", "legit", "neutral", "no", "non-toxic", "nontoxic", "none"),
        *("normal", "not-hate", "not-injection", "not-toxic", "ok", "okay", "safe"),
    )
)
"""Labels of texts in which nothing was found."""

_MEANT = {
    "h": "hate",
    "h2": "hate/threatening",
    "hr": "harassment",
    "s": "sexual",
    "s3": "sexual/minors",
    "sh": "self-harm",
    "v": "violence",
    "v2": "violence/graphic",
    "hate-speech": "hate",
    "hateful": "hate",
    "identity-attack": "hate",
    "identity-hate": "hate",
    "insult": "harassment",
    "jailbreak": "injection",
    "malicious": "injection",
    "nsfw": "sexual",
    "obscene": "sexual",
    "offensive": "harassment",
    "prompt-injection": "injection",
    "severe-toxic": "harassment",
    "severe-toxicity": "harassment",
    "sexual-explicit": "sexual",
    "suicide": "self-harm",
    "threat": "harassment/threatening",
    "toxic": "harassment",
    "toxicity": "harassment",
    "violent": "violence",
}
"""What published classifiers call them."""


def categories_of(
    labels: Sequence[str], named: Mapping[str, str], *, model: str
) -> tuple[str | None, ...]:
    """Of each label its category; None for those that say that a text is harmless.

    `named` is what models.toml says of them, where "" stands for harmless. Raises InvalidValue for labels that say
    nothing, such as LABEL_1, and names the key that explains them.
    """
    return tuple(_category(label, named, model) for label in labels)


def scores_of(categories: Sequence[str | None], probabilities: Sequence[float]) -> dict[str, float]:
    """Of several labels that mean the same, the likeliest counts."""
    found: dict[str, float] = {}
    for category, probability in zip(categories, probabilities, strict=True):
        if category is not None:
            found[category] = max(found.get(category, 0.0), float(probability))
    return found


def _category(label: str, named: Mapping[str, str], model: str) -> str | None:
    if label in named:
        return named[label] or None
    bare = re.sub(r"[\s_]+", "-", label.strip().lower())
    if re.fullmatch(r"label-?\d+", bare):
        raise InvalidValue(
            f"The model {model!r} has a label {label!r}, and nobody says what that means. Name its category in"
            f' models.toml: [models.{model}.guard_labels] {label} = "injection", or "" where it means harmless.',
            param="model",
        )
    return None if bare in HARMLESS else _MEANT.get(bare, bare)
