"""An answer as it is kept: what was said, what it took, and whose it is. Pure.

It is kept as tagged data of this module's own form, which is checked when it is read. Nothing of it is code.
"""

from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter
from sys import getsizeof

import msgspec

from llmhost.core.output import Delta, FinishReason, TokenLogprobs, Usage

FORM = 1
"""Of what is encoded. Answers of another form are not read."""
OBJECT_BYTES, TOKEN_BYTES, LOGPROBS_BYTES, TOP_BYTES = 1_600, 40, 190, 120
"""What Python has of an answer, of a token, of what was thought of one, and of one more that was likely."""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """All that one choice said."""

    index: int
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stop: str | None
    usage: tuple[int, int, int]
    """Prompt, output and reasoning tokens."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()

    def delta(self) -> Delta:
        """The same as it is replayed: at once."""
        return Delta(
            self.index,
            self.text,
            self.tokens,
            self.finish_reason,
            saved_usage(Usage(self.usage[0], 0, self.usage[1], reasoning_tokens=self.usage[2])),
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            stop=self.stop,
        )


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One complete answer of all choices, and what making it took."""

    form: int = FORM
    parts: tuple[Part, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    stored_ns: int
    """UTC, nanoseconds since 1970."""
    engine_ns: int = 0
    cost_nano: int = 0
    """What it cost the operator."""
    model: str
    """`name@version`."""
    scope: str
    """Those who may have it. It is in the key, too; here it is looked at once more."""
    signature: str = ""
    """What requests like this one have in common, for learned policies."""
    tag: str = ""
    """A name by which it can be forgotten."""
    priority: int = 0
    """Those of a smaller one make room first."""
    suits_alike: bool = False
    """Whoever it was made for let it be given to alike questions."""

    def usage(self) -> Usage:
        """Of a request that has it from here: no device did anything, and no prompt token was computed."""
        return saved_usage(
            Usage(
                self.prompt_tokens,
                0,
                self.completion_tokens,
                reasoning_tokens=self.reasoning_tokens,
            )
        )

    def of_prompt(self, prompt_tokens: int) -> "Answer":
        """The same, said to another prompt."""
        parts = tuple(
            msgspec.structs.replace(part, usage=(prompt_tokens, *part.usage[1:]))
            for part in self.parts
        )
        return msgspec.structs.replace(self, parts=parts, prompt_tokens=prompt_tokens)

    @property
    def longest_tokens(self) -> int:
        """Of one choice."""
        return max(part.usage[1] for part in self.parts)

    def age_s(self, now_ns: int) -> float:
        return max(now_ns - self.stored_ns, 0) / 1e9


def size_in_memory(answer: Answer) -> int:
    """About what it takes, in bytes: tokens and what was thought of them weigh several times what is written down."""
    return OBJECT_BYTES + sum(
        getsizeof(part.text)
        + TOKEN_BYTES * len(part.tokens)
        + _thoughts_bytes(part.logprobs)
        + _thoughts_bytes(part.prompt_logprobs)
        for part in answer.parts
    )


def _thoughts_bytes(logprobs: tuple[TokenLogprobs, ...]) -> int:
    return sum(LOGPROBS_BYTES + TOP_BYTES * len(one.top) for one in logprobs)


def saved_usage(usage: Usage) -> Usage:
    """The tokens of an answer that was made before, for whoever gets it again."""
    return Usage(
        usage.prompt_tokens,
        usage.prompt_tokens,
        usage.completion_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def parts_of(deltas: Iterable[Delta]) -> tuple[Part, ...] | None:
    """What each choice said, joined; None where one has no end that may be said again."""
    by_choice = sorted(deltas, key=attrgetter("index"))
    parts = []
    for index, said in groupby(by_choice, key=attrgetter("index")):
        part = _joined(index, list(said))
        if part is None:
            return None
        parts.append(part)
    return tuple(parts) or None


def _joined(index: int, said: list[Delta]) -> Part | None:
    last = said[-1]
    if last.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH) or last.usage is None:
        return None
    usage = last.usage
    return Part(
        index,
        "".join(delta.text for delta in said),
        tuple(token for delta in said for token in delta.tokens),
        last.finish_reason,
        last.stop,
        (usage.prompt_tokens, usage.completion_tokens, usage.reasoning_tokens),
        tuple(one for delta in said for one in delta.logprobs),
        tuple(one for delta in said for one in delta.prompt_logprobs),
    )


encoded = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Answer).decode


def decoded(raw: bytes) -> Answer | None:
    """None for what is no answer of this form."""
    try:
        answer = _decode(raw)
    except (msgspec.DecodeError, ValueError):
        return None
    return answer if answer.form == FORM else None
