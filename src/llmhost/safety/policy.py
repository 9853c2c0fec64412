"""One version of an organisation's policy: what happens to what is found, by category, score and direction. Pure."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from llmhost.core.errors import InvalidValue
from llmhost.safety.pack.pack import NAMES
from llmhost.safety.verdict import (
    Action,
    Decision,
    Direction,
    Finding,
    GuardUse,
    KeepPrompts,
    Policy,
    ReviewMode,
)

MOST_NAMES = 500
MOST_WORDS = 10_000
LONGEST_WORD = 200
REST = "*"
"""Whatever is found that no other name is of."""

Done = Literal["allow", "warn", "redact", "review", "block"]
Share = Annotated[float, Meta(ge=0, le=1)]
Steps = Done | dict[Done, Share]
"""What is done whatever the score, or what is done from which score on."""
Way = Literal["input", "output"]


class GuardBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The deployed model that judges beside the rules."""

    model: str
    directions: tuple[Way, ...] = ("input", "output")
    timeout_ms: Annotated[int, Meta(ge=1, le=600_000)] = 2_000
    fails_open: bool = False
    threshold: Share = 0.5

    def use(self) -> GuardUse:
        return GuardUse(self.model, self.timeout_ms, self.fails_open, self.threshold)


class PolicyBody(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What an organisation's policy says. What it does not mention is as the node's own policy has it."""

    input: dict[str, Steps] = {}
    """By a rule's name, a category's, or `*`; the first of them that is there counts."""
    output: dict[str, Steps] = {}
    words: tuple[str, ...] = ()
    """Blocked words beside those of the node; their category is `words`."""
    guard: GuardBody | UnsetType | None = UNSET
    """Null: none, whatever the node says."""
    review_mode: ReviewMode = ReviewMode.BLOCK
    window_chars: Annotated[int, Meta(ge=16, le=65536)] | None = None
    """How much of an answer is judged at once while it streams; as the node says when absent."""
    keep_prompts: Literal["never", "found", "all"] | None = None
    """Prompts that the audit log keeps, encrypted; as the node says when absent."""
    prompt_days: Annotated[int, Meta(ge=1, le=3650)] | None = None
    """Days until a kept prompt is erased; as the node says when absent."""
    keep_fails_open: bool | None = None
    """Whether text passes whose prompt can't be kept; as the node says when absent."""
    audit_days: Annotated[int, Meta(ge=1, le=36_500)] | None = None
    """Days after which rows of the audit log are deleted; as the node says when absent."""


class OrgPolicy:
    """A body in force. Implements Policy; made once for each version, and cheap to ask."""

    __slots__ = (
        "_allowed",
        "_body",
        "_guards",
        "_keeps",
        "_looks_for",
        "_rest",
        "_tables",
        "name",
        "org",
        "version",
    )

    def __init__(self, org: str, version: int, body: PolicyBody, rest: Policy) -> None:
        """`rest` decides on what the body does not mention."""
        self.org = org
        self.version = version
        self.name = f"{org}@{version}"
        self._body = body
        self._rest = rest
        self._allowed = Decision(Action.ALLOW, self.name)
        self._tables = {
            Direction.INPUT: _table(body.input),
            Direction.OUTPUT: _table(body.output),
        }
        self._looks_for = {way: self._named(way) for way in Direction}
        self._guards = {way: self._guard(way) for way in Direction}
        keeps = rest.keep_prompts
        own = body.keep_fails_open
        self._keeps = KeepPrompts(
            body.keep_prompts or keeps.which,
            body.prompt_days or keeps.days,
            keeps.fails_open if own is None else own,
        )

    @property
    def body(self) -> PolicyBody:
        return self._body

    @property
    def words(self) -> tuple[str, ...]:
        return self._body.words

    @property
    def review_mode(self) -> ReviewMode:
        return self._body.review_mode

    @property
    def window_chars(self) -> int | None:
        return self._body.window_chars or self._rest.window_chars

    @property
    def keep_prompts(self) -> KeepPrompts:
        return self._keeps

    def decide(self, findings: Sequence[Finding], direction: Direction) -> Decision:
        """The strictest action wins, and of two findings that call for it the one that is surer."""
        if not findings:
            return self._allowed
        action, finding = max(
            ((self._action(found, direction), found) for found in findings),
            key=lambda one: (one[0], one[1].score),
        )
        return Decision(action, self.name, finding)

    def guard(self, direction: Direction) -> GuardUse | None:
        return self._guards[direction]

    def looks_for(self, direction: Direction) -> tuple[str, ...]:
        return self._looks_for[direction]

    def _action(self, found: Finding, direction: Direction) -> Action:
        table = self._tables[direction]
        for name in (found.rule, found.category, REST):
            steps = table.get(name)
            if steps is not None:
                return next((do for do, least in steps if found.score >= least), Action.ALLOW)
        return self._rest.decide((found,), direction).action

    def _named(self, way: Direction) -> tuple[str, ...]:
        table = self._tables[way]
        wanted = [
            name for name, steps in table.items() if steps[0][0] > Action.ALLOW and name != REST
        ]
        inherited = [name for name in self._rest.looks_for(way) if name not in table]
        return (*wanted, *inherited)

    def _guard(self, way: Direction) -> GuardUse | None:
        guard = self._body.guard
        if guard is UNSET:
            return self._rest.guard(way)
        if guard is None or way.value not in guard.directions:
            return None
        return guard.use()


def check_policy(body: PolicyBody) -> None:
    """What types alone can't say. Raises InvalidValue."""
    for way, table in (("input", body.input), ("output", body.output)):
        if len(table) > MOST_NAMES:
            raise InvalidValue(
                f"'{way}' has {len(table)} names; {MOST_NAMES} may be there.", param=f"policy.{way}"
            )
        for name, steps in table.items():
            if not name or len(name) > LONGEST_WORD:
                raise InvalidValue("A name is a rule's, a category's, or *.", param=f"policy.{way}")
            if near := _misspelt(name):
                raise InvalidValue(
                    f"{name!r} is no rule and no category of rules. Did you mean {near!r}?",
                    param=f"policy.{way}.{name}",
                )
            if not steps:
                raise InvalidValue(
                    f"{name!r} says nothing: give an action, or actions and the scores they begin at.",
                    param=f"policy.{way}.{name}",
                )
    if len(body.words) > MOST_WORDS:
        raise InvalidValue(f"A policy may have {MOST_WORDS} words.", param="policy.words")
    for index, word in enumerate(body.words):
        if not word.strip() or len(word) > LONGEST_WORD:
            raise InvalidValue(
                f"A word has 1 to {LONGEST_WORD} characters, and not only blanks.",
                param=f"policy.words[{index}]",
            )


def _misspelt(name: str) -> str | None:
    """What was meant by a name that is almost one of the rules'; guards and plugins have names of their own."""
    if name in NAMES:
        return None
    return next(iter(get_close_matches(name, NAMES, 1, cutoff=0.85)), None)


def _table(said: Mapping[str, Steps]) -> dict[str, tuple[tuple[Action, float], ...]]:
    """The strictest action first."""
    return {name: _steps(steps) for name, steps in said.items()}


def _steps(steps: Steps) -> tuple[tuple[Action, float], ...]:
    if isinstance(steps, str):
        return ((Action[steps.upper()], 0.0),)
    return tuple(sorted(((Action[do.upper()], least) for do, least in steps.items()), reverse=True))
