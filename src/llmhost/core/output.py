"""What comes back: deltas while a sequence runs, usage when it has ended."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from llmhost.core.errors import LlmhostError


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    CANCELLED = "cancelled"
    """Never on the wire: nobody is left to read it."""
    ERROR = "error"
    """On the wire as an error event."""


class Outcome(StrEnum):
    """The one way in which a request ended."""

    ANSWERED = "answered"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens and machine time of one sequence or, added up, of one request.

    A request has several, and a frozen dataclass takes eighteen times as long to make.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """The part of `prompt_tokens` that a cache saved."""
    completion_tokens: int = 0
    engine_ns: int = 0
    """This request's share of measured device time."""
    cost_nano: int = 0
    """What that time cost, in nano-dollars; nothing where no [costs] are configured."""
    input_cost_nano: int = 0
    """The prompt's part of `cost_nano`."""
    reasoning_tokens: int = 0
    """The part of `completion_tokens` that are thoughts."""
    right_guesses: int = 0
    """Of a sequence whose caller predicted its answer: the part of `completion_tokens` that had been guessed."""
    wrong_guesses: int = 0
    """What was guessed of it besides. Nobody pays for those."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.engine_ns + other.engine_ns,
            self.cost_nano + other.cost_nano,
            self.input_cost_nano + other.input_cost_nano,
            self.reasoning_tokens + other.reasoning_tokens,
            self.right_guesses + other.right_guesses,
            self.wrong_guesses + other.wrong_guesses,
        )

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class TokenLogprobs(NamedTuple):
    """What the model itself thought of one token: natural logarithms, before penalties, filters and grammars."""

    token: int
    logprob: float
    rank: int
    """1 for the likeliest token of the vocabulary."""
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log probability) of the likeliest tokens, the likeliest first."""


class Delta(msgspec.Struct):
    """What one step added to one choice. The last delta of a choice has a `finish_reason` and its `usage`.

    There is one for every token of every answer, and a struct takes a quarter of the time that a dataclass does.
    """

    index: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: LlmhostError | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of `tokens`, where they were asked for."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of prompt tokens that this step computed, in order, where they were asked for; the prompt's first has none."""
    pooled: Sequence[float] | None = None
    """The vector of a sequence that pools."""
    stop: str | None = None
    """The stop string that ended the choice, if one did."""
    cuts: tuple[tuple[int, int, int], ...] = ()
    """Of the choice's text as it was made: from, to, and how many characters are put in their place. Told before or
    with what is put there."""

    def but(self, **changes: Any) -> "Delta":
        """A copy with other values in some fields."""
        return msgspec.structs.replace(self, **changes)
