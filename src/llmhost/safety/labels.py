"""What reviewers' decisions say of rules and thresholds. Pure.

A text that was rejected was found rightly; one that was approved was a false alarm. What nobody reviewed is not known,
so nothing here says how much a rule misses.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEAST_LABELS = 20
"""With fewer no threshold is proposed."""
WANTED_PRECISION = 0.9
Z = 1.96
"""Of a 95% interval."""


@dataclass(frozen=True, slots=True)
class Label:
    """One decision, as a judgement on what was found."""

    category: str
    rule: str
    tier: str
    score: float
    is_right: bool
    """The reviewers rejected the text."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of texts on which two reviewers or more have voted, by the first two votes."""

    texts: int
    agreed: int
    kappa: float | None
    """How much more often they agreed than by chance: 1 always, 0 not more often (Scott's pi, as who came first says
    nothing); None where all votes were the same, or there were none."""


def agreement_of(votes: Sequence[Sequence[bool]]) -> Agreement:
    """`votes` are those of each text, in their order."""
    pairs = [(cast[0], cast[1]) for cast in votes if len(cast) > 1]
    agreed = sum(one == other for one, other in pairs)
    approvals = sum(one + other for one, other in pairs)
    if not 0 < approvals < 2 * len(pairs):
        return Agreement(len(pairs), agreed, None)
    share = approvals / (2 * len(pairs))
    by_chance = share**2 + (1 - share) ** 2
    kappa = (agreed / len(pairs) - by_chance) / (1 - by_chance)
    return Agreement(len(pairs), agreed, kappa)


@dataclass(frozen=True, slots=True)
class RuleQuality:
    """How often what a rule found was found rightly."""

    rule: str
    tier: str
    category: str
    right: int
    wrong: int
    low: float
    """The precision is above this, as far as so few decisions can tell (95%, Wilson's interval)."""

    @property
    def precision(self) -> float:
        return self.right / (self.right + self.wrong)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A threshold for scores of one category."""

    category: str
    labels: int
    threshold: float | None
    """The lowest score from which on `precision` is at least what was wanted; None where no score is, or there are too
    few decisions."""
    precision: float | None
    kept: int
    """Of the texts that were found rightly, those that the threshold still finds."""
    right: int


def rule_qualities(labels: Iterable[Label]) -> list[RuleQuality]:
    """By rule, those with the most decisions first."""
    counts: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for label in labels:
        counts[label.rule, label.tier, label.category][0 if label.is_right else 1] += 1
    found = [
        RuleQuality(*name, right=right, wrong=wrong, low=wilson_low(right, right + wrong))
        for name, (right, wrong) in counts.items()
    ]
    return sorted(found, key=lambda quality: (-(quality.right + quality.wrong), quality.rule))


def proposals(labels: Iterable[Label], wanted: float = WANTED_PRECISION) -> list[Proposal]:
    """For each category whose findings have scores; rules are sure, so they have no threshold."""
    by_category: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        if label.tier != "rules":
            by_category[label.category].append(label)
    return [_proposal(name, by_category[name], wanted) for name in sorted(by_category)]


def _proposal(category: str, labels: Sequence[Label], wanted: float) -> Proposal:
    """Going down from the highest score, the last place at which those above are precise enough."""
    total = sum(label.is_right for label in labels)
    best: tuple[float, float, int] | None = None
    right = seen = 0
    ranked = sorted(labels, key=lambda label: -label.score)
    for place, label in enumerate(ranked):
        right, seen = right + label.is_right, seen + 1
        is_last_of_score = place + 1 == len(ranked) or ranked[place + 1].score != label.score
        if is_last_of_score and right / seen >= wanted:
            best = label.score, right / seen, right
    if best is None or len(labels) < LEAST_LABELS:
        return Proposal(category, len(labels), None, None, 0, total)
    return Proposal(category, len(labels), best[0], best[1], best[2], total)


def wilson_low(right: int, count: int) -> float:
    """The lower end of Wilson's interval of a share; 0 of nothing."""
    if not count:
        return 0.0
    share, square = right / count, Z * Z
    middle = share + square / (2 * count)
    spread = Z * ((share * (1 - share) + square / (4 * count)) / count) ** 0.5
    return float(max(0.0, (middle - spread) / (1 + square / count)))
