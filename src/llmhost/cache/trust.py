"""How far answers to alike questions can be trusted: what checks found, and how alike questions have to be. Pure.

A check has the model answer what was answered from the cache, and says whether both answers agree. Where more than a
bound disagree, questions have to be more alike than those that did; where that is not possible, nothing is given.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

WINDOW = 500
"""Checks that count: the newest."""
FIRST_CHECKS = 20
"""Until there are so many that count, each hit is checked."""
STEP = 0.001
"""By so much more alike than those that were answered falsely."""
REST_NS = 60 * 10**9
"""Until another check is tried after one that could not be made."""
HIGHEST = 0.999
"""Nothing is that alike but what is the same: a threshold beyond ends it."""

MOST_TRUSTS = 1_000
"""Pairs of organisation and model."""


class Check(NamedTuple):
    similarity: float
    agrees: bool


@dataclass(frozen=True, slots=True)
class Terms:
    """What an operator asks for."""

    min_similarity: float = 0.92
    check_share: float = 0.05
    max_false_share: float = 0.01


@dataclass(frozen=True, slots=True)
class Learnt:
    """What was found of one organisation with one model, and under what it was."""

    org: str
    model: str
    terms: Terms
    embedder: str
    threshold: float
    checks: tuple[Check, ...]


class Trust:
    """Of one organisation with one model, whose questions one embedder compares."""

    def __init__(self, terms: Terms, embedder: str = "") -> None:
        self._terms = terms
        self._embedder = embedder
        self.threshold = terms.min_similarity
        self._checks: deque[Check] = deque(maxlen=WINDOW)
        self._rests_until_ns = 0

    @property
    def is_stopped(self) -> bool:
        return self.threshold > HIGHEST

    @property
    def counting(self) -> list[Check]:
        """Of hits that would still be given."""
        return [check for check in self._checks if check.similarity >= self.threshold]

    @property
    def is_new(self) -> bool:
        """Too few checks count: each hit has to be checked."""
        return len(self.counting) < FIRST_CHECKS

    def fail(self, now_ns: int) -> None:
        """A check could not be made."""
        self._rests_until_ns = now_ns + REST_NS

    def can_check(self, now_ns: int) -> bool:
        return now_ns >= self._rests_until_ns

    def wants_check(self, draw: float) -> bool:
        """`draw` is a number of at least 0 and less than 1, drawn for this hit."""
        return draw < self._terms.check_share or self.is_new

    def note(self, check: Check) -> bool:
        """Whether the threshold has risen."""
        self._checks.append(check)
        before = self.threshold
        while (false := self._false()) and len(false) > self._terms.max_false_share * len(
            self.counting
        ):
            self.threshold = min(false) + STEP
        return self.threshold > before

    def learnt(self, org: str, model: str) -> Learnt:
        checks = tuple(self._checks)
        return Learnt(org, model, self._terms, self._embedder, self.threshold, checks)

    @classmethod
    def of_learnt(cls, row: Learnt) -> "Trust":
        trust = cls(row.terms, row.embedder)
        trust.threshold = row.threshold
        trust._checks.extend(row.checks)
        return trust

    def _false(self) -> list[float]:
        return [check.similarity for check in self.counting if not check.agrees]


class Trusts:
    """By organisation and model. Owned by the HTTP loop."""

    form = "1"
    row_type = Learnt

    def __init__(self, most: int = MOST_TRUSTS) -> None:
        self._most = most
        self._known: dict[tuple[str, str], Trust] = {}
        self.changed: set[str] = set()
        self.fits: Callable[[Learnt], bool] = lambda row: True
        """Whether what another process found still says something: models, embedders and terms may be others now."""

    def of(self, org: str, model: str, terms: Terms, embedder: str = "") -> Trust | None:
        """None where there are too many: to those nothing is given that could not be checked."""
        trust = self._known.get((org, model))
        if trust is None and len(self._known) < self._most:
            trust = self._known[org, model] = Trust(terms, embedder)
        return trust

    def known(self, org: str, model: str) -> Trust | None:
        return self._known.get((org, model))

    def note(self, org: str, model: str, check: Check) -> bool:
        """Whether the threshold has risen; a trust that was forgotten meanwhile begins without it."""
        trust = self._known.get((org, model))
        if trust is None:
            return False
        self.changed.add(_name(org, model))
        return trust.note(check)

    def forget(self, is_meant: Callable[[str, str], bool]) -> None:
        """Begin anew with organisations and models that are meant."""
        for org, model in [pair for pair in self._known if is_meant(*pair)]:
            del self._known[org, model]
            self.changed.add(_name(org, model))

    def row(self, name: str) -> Learnt | None:
        org, _, model = name.partition("\0")
        trust = self._known.get((org, model))
        return None if trust is None else trust.learnt(org, model)

    def restore(self, name: str, row: Learnt, now_ns: int) -> bool:
        if len(self._known) >= self._most or not self.fits(row):
            return False
        self._known[row.org, row.model] = Trust.of_learnt(row)
        return True


def _name(org: str, model: str) -> str:
    return f"{org}\0{model}"
