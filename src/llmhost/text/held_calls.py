"""Answers that are free until the model begins a call, and are held to the tools from there to the call's end.

While an answer is free it costs nothing: its rows have no grammar, and only its tokens are looked at as they come. In
steps that are begun ahead they have one, as the token before may turn out to be an opener. One token may be an opener
and more than that; if what follows in it does not fit, that call is as free as the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llguidance import LLMatcher

from llmhost.text.answer import Answer, Compiled, Sheet
from llmhost.text.grammar_calls import HeldFormat
from llmhost.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class CompiledCalls:
    """What calls are held to, and what they begin with."""

    matcher: LLMatcher
    ids: frozenset[int]
    """Openers that are tokens without text."""
    texts: tuple[bytes, ...]
    first: tuple[bytes, ...]
    """Openers only where an answer begins with them, which are part of what calls are held to."""
    many: bool

    @classmethod
    def of(
        cls,
        matcher: LLMatcher,
        form: HeldFormat,
        vocabulary: Vocabulary,
        names: Sequence[str],
        *,
        many: bool,
    ) -> "CompiledCalls":
        ids = [vocabulary.specials[text] for text in form.openers if text in vocabulary.specials]
        texts = [text.encode() for text in form.openers if text not in vocabulary.specials]
        listed = [f"[{name}(" for name in names] if form.names_first else []
        first = tuple(text.encode() for text in (*form.first, *listed))
        return cls(matcher, frozenset(ids), tuple(texts), first, many)


@dataclass(slots=True)
class _Free:
    """Where a free answer stands."""

    is_thinking: bool
    tail: bytes = b""
    """The end of the text, as long as an opener that it may begin."""
    start: bytes | None = b""
    """All of the text while it may be the beginning of an opener; None later."""

    def after(self, token: int, calls: CompiledCalls, vocabulary: Vocabulary) -> bytes | None:
        """Take a token. What comes after an opener that it completes; None where it completes none."""
        if (thinking := vocabulary.thinking) is not None and token in thinking[:2]:
            self.is_thinking = token == thinking.begin
            self.tail, self.start = b"", b"" if not self.is_thinking else None
            return None
        if self.is_thinking:
            return None
        if token in calls.ids:
            return b""
        text = vocabulary.known[token] if token < len(vocabulary.known) else b""
        if (begun := self._begun(text, calls)) is not None:
            return begun
        text = self.tail + text
        for opener in calls.texts:
            _, found, rest = text.partition(opener)
            if found:
                return rest
        longest = max(map(len, calls.texts), default=1)
        self.tail = text[max(len(text) - longest + 1, 0) :]
        return None

    def _begun(self, text: bytes, calls: CompiledCalls) -> bytes | None:
        if self.start is None or not calls.first:
            return None
        said = (self.start + text).lstrip()
        if any(said.startswith(opener) for opener in calls.first):
            return said
        may_come = any(opener.startswith(said) for opener in calls.first)
        self.start = said if may_come else None
        return None


class CallsAnswer(Answer):
    """Where one such sequence stands."""

    __slots__ = ("_calls", "_free", "_held", "_is_over")

    def __init__(
        self, vocabulary: Vocabulary, calls: CompiledCalls, prompt: Sequence[int] = ()
    ) -> None:
        super().__init__(vocabulary, Compiled(calls.matcher, calls.matcher), prompt)
        self._calls = calls
        self._free = _Free(is_thinking=self._is_thinking is True)
        self._held: LLMatcher | None = None
        self._is_over = False
        """There was a call, and there may be no other."""

    @property
    def is_free(self) -> bool:
        return self._held is None

    @property
    def is_ended(self) -> bool:
        return self._is_over

    def accept(self, token: int) -> None:
        if self._held is not None:
            self._held.consume_token(token)
            self._settle()
            return
        rest = self._free.after(token, self._calls, self.vocabulary)
        if rest is not None:
            self._held = self._calls.matcher.deep_copy()
            self._held.consume_tokens([self.vocabulary.byte_ids[byte] for byte in rest])
            self._settle()

    def valid_prefix(self, tokens: Sequence[int]) -> int:
        """Guesses end before an opener: what comes after it is not to be drawn freely."""
        if self._held is not None:
            return int(self._held.validate_tokens(list(tokens)))
        ahead = _Free(self._free.is_thinking, self._free.tail, self._free.start)
        for count, token in enumerate(tokens):
            if ahead.after(token, self._calls, self.vocabulary) is not None:
                return count
        return len(tokens)

    def ask(self, guesses: Sequence[int], line: int, sheet: Sheet) -> None:
        if self._held is None:  # rows of free answers have no grammar, so nobody asks
            sheet.every.extend(range(line, line + 1 + len(guesses)))
            return
        sheet.wanted.append((self._held, line, list(guesses)))
        if not self._held.is_accepting():
            sheet.endless.append(line)

    def _settle(self) -> None:
        """The call may be over, or may be none."""
        assert self._held is not None
        if self._held.is_error():
            self._held, self._free = None, _Free(is_thinking=False, start=None)
        elif self._held.is_stopped():
            self._held, self._free = None, _Free(is_thinking=False, start=None)
            self._is_over = not self._calls.many
