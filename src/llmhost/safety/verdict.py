"""What judges find in a text, what a policy makes of it, and who is told. Pure: the seam between the three.

Judges (rules, plugins, classifiers, guard models) give findings and never decide. A policy decides and never looks at
text. What was decided goes to a journal, which writes it down, and to a queue of reviews where the policy says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Literal, Protocol

import msgspec

from llmhost.core.caller import Caller
from llmhost.core.output import Usage
from llmhost.core.request import GenerationRequest


class Action(IntEnum):
    """What happens to a text. Of several findings, the strictest action wins."""

    ALLOW = 0
    WARN = 1
    """It passes; the journal and a header of the answer say what was found."""
    REDACT = 2
    """What was found is replaced by its category's name, and the rest passes."""
    REVIEW = 3
    """A human decides. What happens until then is the policy's `review` mode."""
    BLOCK = 4


class Direction(StrEnum):
    INPUT = "input"
    OUTPUT = "output"


class Tier(StrEnum):
    """Who found it, the cheapest first."""

    RULES = "rules"
    PLUGIN = "plugin"
    CLASSIFIER = "classifier"
    GUARD = "guard"
    HUMAN = "human"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that one judge found. It never repeats the text."""

    category: str
    """Such as `secret`, `pii`, `injection`, `words`, `violence`."""
    rule: str
    """Such as `pii.card`, `blocked_words[2]`, `plugin:name`, `guard:MODEL`."""
    tier: Tier
    score: float = 1.0
    """From 0 to 1. Rules are sure."""
    start: int = -1
    """Where it begins in the text that was judged, in characters; -1 when it is the text as a whole."""
    end: int = -1


@dataclass(frozen=True, slots=True)
class KeepPrompts:
    """Which prompts the audit log keeps, and for how long."""

    which: Literal["never", "found", "all"] = "never"
    days: int = 30
    fails_open: bool = False
    """Whether text passes whose prompt can't be kept."""


NO_PROMPTS = KeepPrompts()


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What a policy made of findings."""

    action: Action
    policy: str
    """Name and version, such as `default@1`."""
    finding: Finding | None = None
    """The one that decided; None when there was nothing to decide on."""


class Policy(Protocol):
    """One version of one organisation's policy. Immutable, cheap to ask: it lies on the path of every request."""

    @property
    def name(self) -> str:
        """Name and version, such as `default@1`."""

    def decide(self, findings: Sequence[Finding], direction: Direction) -> Decision: ...

    def guard(self, direction: Direction) -> "GuardUse | None":
        """The model that judges beside the rules, if any."""

    def looks_for(self, direction: Direction) -> tuple[str, ...]:
        """Categories and single rules of the pack (`safety/pack`) that it acts on, such as `pii` or `secret.jwt`. What
        nobody looks for costs nothing. The same tuple at every call, because it is a key."""

    @property
    def words(self) -> tuple[str, ...]:
        """The organisation's own blocked words, beside those of the node."""

    @property
    def review_mode(self) -> "ReviewMode": ...

    @property
    def window_chars(self) -> int | None:
        """How much of an answer is judged at once; None: as the node says."""

    @property
    def keep_prompts(self) -> KeepPrompts: ...


class ReviewMode(StrEnum):
    """What a caller gets while a human has not decided."""

    BLOCK = "block"
    """Refused, and queued: a reviewer who approves lets the same text pass from then on."""
    HOLD = "hold"
    """202 and a review id to ask again with (HeldForReview); the answer goes out when it is approved. A stream that has
    begun can't be held: it ends, as with `block`."""
    RELEASE = "release"
    """It passes, and a share of those is looked at afterwards."""


@dataclass(frozen=True, slots=True)
class GuardUse:
    """How a policy uses a deployed model as its judge."""

    model: str
    timeout_ms: int = 2_000
    fails_open: bool = False
    """Whether text passes that could not be judged in time."""
    threshold: float = 0.5


class Policies(Protocol):
    def of(self, caller: Caller) -> Policy:
        """The policy in force for a caller's organisation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Screening:
    """One decision about one text, as it is written down. It holds no text but a prompt that is to be kept."""

    at_ns: int
    """UTC, nanoseconds since 1970."""
    request_id: str
    caller: Caller
    model: str
    direction: Direction
    decision: Decision
    findings: tuple[Finding, ...]
    review_id: str | None = None
    prompt: str | None = None
    """Where the policy has it kept."""
    prompt_days: int = 0


class Journal(Protocol):
    """Where decisions are written down. Called on the HTTP loop; it takes them and blocks nobody."""

    def count(
        self, caller: Caller, direction: Direction, policy: str, at_ns: int, texts: int = 1
    ) -> bool:
        """Take it that a text passed in which nothing was found, or several did; False where that is for `record`,
        because somebody wants to read of each."""

    async def make_room(self, screening: Screening) -> None:
        """Come back when the prompt of a screening can be taken with it. Raises SafetyUnavailable when none can for
        long; `record` takes the rest all the same."""

    def record(self, screening: Screening) -> None: ...


class Reviews(Protocol):
    """The queue of what humans are to decide."""

    async def refer(
        self, screening: Screening, text: str, redacted: str, mode: ReviewMode
    ) -> str | None:
        """Queue a text, durably. The id of the review.

        None where none waits: with `release` for what is not in the sample, else because a reviewer has rejected
        exactly this text of this organisation; never for an answer with `hold`. Raises SafetyUnavailable when it can't
        be kept.
        """

    def approved(self, caller: Caller, text: str) -> bool:
        """Whether a reviewer let exactly this text of this organisation pass before. In memory; no I/O."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What a guard is asked about: a conversation and, of an answer, what has been said of it so far."""

    request: GenerationRequest
    """As the rules left it. Its `texts` and `messages` are what the caller wrote."""
    caller: Caller
    direction: Direction
    answer: str = ""
    """Of Direction.OUTPUT: the answer from its beginning, this window last."""
    judged_chars: int = 0
    """So much of `answer` was judged before."""


NOTHING_USED = Usage()


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a guard found, and what it took. Both belong to the request that was judged."""

    findings: tuple[Finding, ...] = ()
    usage: Usage = NOTHING_USED
    """Of the guard model; its `cost_nano` becomes the request's safety cost."""
    texts: int = 1
    """So many texts were judged."""


class Guard(Protocol):
    """A model as a judge. `safety/asking.py` gives it its time, and decides what a failure means."""

    async def judge(self, case: Case, use: GuardUse) -> Opinion:
        """Findings of at least `use.threshold`. Cancelled when its time is over or its request is gone: then what it
        used is nobody's. May raise anything: that is a guard that failed."""
