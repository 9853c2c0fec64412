"""Tokens of answers and prompts, one by one: how each is written, and when it may be shown.

A token is shown when all of its text is out. So stop strings and rules hold back tokens exactly as they hold back
text, and what is shown adds up to the answer. A tokenizer's own watch says where each token's text begins and ends.
"""

from collections import deque
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import msgspec

from llmhost.core.output import Delta, FinishReason, TokenLogprobs
from llmhost.core.ports import TextWatch, Tokenizer

LEAST_LOGPROB = -9999.0
"""JSON has no infinity: what can't be said at all is written so, as vLLM does."""

_encode = msgspec.json.encode


class Placed(NamedTuple):
    """A token, its characters in the text, and what the model thought of it, where that was asked for."""

    token: int
    start: int
    end: int
    logprobs: TokenLogprobs | None


class Trail:
    """One choice's tokens, each let out when its text is.

    `ends` are the ids that end an answer; such a token is let out with `with_end`. With `to_the_end` those are, too,
    that have nothing left in the text because a stop string began before them.
    """

    def __init__(
        self,
        watch: TextWatch,
        ends: frozenset[int] = frozenset(),
        *,
        with_end: bool = False,
        to_the_end: bool = False,
    ) -> None:
        self._watch = watch
        self._ends = ends
        self._with_end = with_end
        self._to_the_end = to_the_end
        self._held: deque[Placed] = deque()
        self._placed = 0
        """Characters of all tokens so far, stop strings and what rules forbid included."""
        self._out = 0
        """Up to where the text as it was made is out, or something in its place."""
        self._spare = 0
        """Characters that are out, and belong to what is put in the place of others, all of which is not out yet."""
        self._cuts: deque[tuple[int, int, int]] = deque()
        """Known, and still to come."""
        self._passed: list[tuple[int, int, int]] = []

    def take(self, delta: Delta) -> list[Placed]:
        """The tokens that may be shown with this delta's text."""
        reason, tokens = delta.finish_reason, delta.tokens
        has_end = reason is FinishReason.STOP and bool(tokens) and tokens[-1] in self._ends
        last = len(tokens) - 1 if has_end else None
        for place, (token, logprobs) in enumerate(zip_longest(tokens, delta.logprobs)):
            start = self._placed
            if place != last:  # the text of an end is not the answer's
                self._placed += len(self._watch.push(token))
            self._held.append(Placed(token, start, self._placed, logprobs))
        self._cuts += delta.cuts
        self._come(len(delta.text))
        if reason in (FinishReason.LENGTH, FinishReason.STOP):
            return self._shown(self._rest(has_end=has_end))
        return self._shown([self._held.popleft() for _ in range(self._ready())])

    def _come(self, chars: int) -> None:
        """So much more of the text is out."""
        self._spare += chars
        while self._cuts:
            start, end, left_chars = self._cuts[0]
            gap = min(start - self._out, self._spare)
            self._out, self._spare = self._out + gap, self._spare - gap
            if self._out < start or self._spare < left_chars:
                return
            self._out, self._spare = end, self._spare - left_chars
            self._passed.append(self._cuts.popleft())
        self._out, self._spare = self._out + self._spare, 0

    def _shown(self, tokens: list[Placed]) -> list[Placed]:
        """Without those of which something was cut, and at their places in what is left."""
        if not self._passed:
            return tokens
        shown = []
        for token in tokens:
            if any(token.start < end and token.end > start for start, end, _ in self._passed):
                continue
            moved = sum(left - (end - at) for at, end, left in self._passed if end <= token.start)
            shown.append(token._replace(start=token.start + moved, end=token.end + moved))
        return shown

    def _ready(self) -> int:
        """A token without text, such as half a character, waits for what comes after it."""
        count = 0
        for placed in self._held:
            if placed.start >= self._out or placed.end > self._out:
                break
            count += 1
        return count

    def _rest(self, *, has_end: bool) -> list[Placed]:
        """At an answer's own end: what is not in the text then was cut off by a stop string."""
        held = list(self._held)
        if self._to_the_end:
            return held
        if has_end and not self._with_end:
            held.pop()
        if self._placed + len(self._watch.flush()) > self._out:
            return [placed for placed in held if placed.start < self._out]
        return held


def placed_prompt(
    tokens: Sequence[int], logprobs: Sequence[TokenLogprobs], watch: TextWatch
) -> list[Placed]:
    """A prompt's tokens. Of the first nothing was thought; nor of others, where the model does not tell."""
    end = 0
    placed: list[Placed] = []
    for token, thought in zip_longest(tokens, (None, *logprobs[: len(tokens) - 1])):
        start, end = end, end + len(watch.push(token))
        placed.append(Placed(token, start, end, thought))
    return placed


class Spelled(NamedTuple):
    text: str
    """Incomplete characters are U+FFFD."""
    key: str
    """The same, but one of its own for incomplete characters, as OpenAI's completions have it."""
    data: bytes | None
    """None for special tokens, which stand for no bytes."""


class Spelling:
    """How a model's tokens are written, each looked up once. Of one request, because a vocabulary is large."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, Spelled] = {}
        self._chat: dict[int, tuple[bytes, bytes]] = {}

    def of(self, token: int) -> Spelled:
        if (known := self._known.get(token)) is None:
            known = self._known[token] = self._look_up(token)
        return known

    def key(self, token: int) -> str:
        return self.of(token).key

    def chat_entry(self, logprobs: TokenLogprobs, count: int) -> bytes:
        """One entry of a chat's `logprobs.content`, with the `count` likeliest tokens."""
        entry = self._entry(logprobs.token, logprobs.logprob)
        top = b"},".join([self._entry(*pair) for pair in logprobs.top[:count]])
        return b'%s,"top_logprobs":[%s]}' % (entry, top + b"}" if top else b"")

    def _entry(self, token: int, logprob: float) -> bytes:
        """An object but for its last brace."""
        if (parts := self._chat.get(token)) is None:
            text, _, data = self.of(token)
            bytes_ = None if data is None else list(data)
            parts = self._chat[token] = (
                b'{"token":%s,"logprob":' % _encode(text),
                b',"bytes":%s' % _encode(bytes_),
            )
        return parts[0] + _encode(written(logprob)) + parts[1]

    def _look_up(self, token: int) -> Spelled:
        data = self._tokenizer.token_bytes(token)
        if not data:
            text = self._tokenizer.decode([token], skip_special_tokens=False)
            return Spelled(text, text, None)
        text = data.decode(errors="replace")
        try:
            return Spelled(text, data.decode(), data)
        except UnicodeDecodeError:
            return Spelled(text, "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data)


def written(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
