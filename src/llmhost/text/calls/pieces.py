"""What readers of answers find, and what all of them are made of: text that comes in pieces, taken from its front.

A reader is written as one generator that takes what it can and yields None when it needs more. How the text fell into
pieces so never changes what is found in it.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import NamedTuple, Protocol, TypeVar

T = TypeVar("T")


class Piece(NamedTuple):
    """Text that came: of the arguments of a call, with its name when it begins, or of no call and so content."""

    text: str
    call: int | None = None
    name: str | None = None
    is_thought: bool = False


Steps = Generator[Piece | None, None, T]
"""Yields pieces, and None for want of text; then the result."""


class Readable(Protocol):
    """What reads one choice's text as it comes."""

    @property
    def is_complete(self) -> bool:
        """There are calls, and the last one has its end."""
        ...

    @property
    def is_within_call(self) -> bool:
        """The text so far ends amid a call."""
        ...

    def push(self, text: str) -> list[Piece]: ...

    def finish(self) -> list[Piece]:
        """What was held back, at the end."""
        ...


def whole_characters(text: str) -> str:
    """Halves of characters, which JSON's and Python's escapes can name, are in no text that can be sent."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Feed:
    """Text that has come and was not taken yet."""

    __slots__ = ("is_over", "text")

    def __init__(self) -> None:
        self.text = ""
        self.is_over = False
        """Nothing will come any more."""

    def cut(self, count: int) -> str:
        """Take so many characters."""
        taken, self.text = self.text[:count], self.text[count:]
        return taken

    def until(self, *marks: str) -> tuple[str, str | None]:
        """Take what comes before the first of the marks, and that mark; or what can't be part of one, and None.

        Of two marks at one place the longer one is meant.
        """
        found = [(at, -len(mark), mark) for mark in marks if (at := self.text.find(mark)) >= 0]
        if found:
            at, _, mark = min(found)
            before = self.cut(at)
            self.cut(len(mark))
            return before, mark
        kept = 0 if self.is_over else max(overlap(self.text, mark) for mark in marks)
        return self.cut(len(self.text) - kept), None


def overlap(text: str, mark: str) -> int:
    """Characters at the end of `text` that may be the beginning of `mark`."""
    most = min(len(mark) - 1, len(text))
    return next((n for n in range(most, 0, -1) if text.endswith(mark[:n])), 0)


class Reader(ABC):
    """Reads one choice. Families say how in `read`."""

    def __init__(self) -> None:
        self.feed = Feed()
        self.calls = 0
        self.is_within_call = False
        """The text so far ends amid a call."""
        self.skipped = ""
        """The white space that `skip_space` took last."""
        self._space = ""
        """White space that is content only if content comes after it."""
        self._begins: frozenset[str] | None = None
        """Set while text is content, or thoughts, up to a mark: what such marks begin with."""
        self._is_thought = False
        self._steps: Iterator[Piece | None] = self.read()

    @property
    def is_complete(self) -> bool:
        """There are calls, and the last one has its end."""
        return bool(self.calls) and not self.is_within_call

    def push(self, text: str) -> list[Piece]:
        if self._is_plain(text):
            return self._plain(text)
        self.feed.text += text
        return self._taken()

    def _is_plain(self, text: str) -> bool:
        """By far the most text: between marks, without the beginning of one."""
        return (
            self._begins is not None
            and not self.feed.text
            and self._begins.isdisjoint(text)
            and (self._is_thought or not text[-1:].isspace())
        )

    def _plain(self, text: str) -> list[Piece]:
        if self._is_thought:
            return [Piece(text, is_thought=True)] if text else []
        text, self._space = self._space + text, ""
        return [Piece(text)] if text else []

    def finish(self) -> list[Piece]:
        """What was held back, at the end."""
        self.feed.is_over = True
        pieces = self._taken()
        if self._space and not self.calls:
            pieces.append(Piece(self._space))
        self._space = ""
        return pieces

    @abstractmethod
    def read(self) -> Steps[None]:
        """The whole of an answer."""

    # ------------------------------------------------------------ steps that families are made of

    def more(self) -> Steps[bool]:
        """Wait for text; False when there will be none."""
        if self.feed.is_over:
            return False
        yield None
        return bool(self.feed.text) or not self.feed.is_over

    def say(self, text: str) -> Steps[None]:
        """Content. White space around calls is not."""
        if said := text.rstrip():
            yield Piece(self._space + said)
            self._space = ""
        self._space += text[len(said) :]

    def begin(self, name: str) -> Steps[int]:
        """A call, whose number is returned."""
        call, self.calls = self.calls, self.calls + 1
        self._space = ""
        self.is_within_call = True
        yield Piece("", call, whole_characters(name))
        return call

    def end(self) -> None:
        self.is_within_call = False

    def skip_space(self) -> Steps[str]:
        """Take white space. The next character, which is not taken, or nothing at the end."""
        self.skipped = ""
        while True:
            bare = self.feed.text.lstrip()
            self.skipped += self.feed.cut(len(self.feed.text) - len(bare))
            if bare:
                return bare[0]
            if not (yield from self.more()):
                return ""

    def comes(self, mark: str) -> Steps[bool]:
        """Take a mark if it is what comes now."""
        feed = self.feed
        while len(feed.text) < len(mark) and mark.startswith(feed.text):
            if not (yield from self.more()):
                return False
        if not feed.text.startswith(mark):
            return False
        feed.cut(len(mark))
        return True

    def until(self, *marks: str) -> Steps[tuple[str, str | None]]:
        """Everything before the first of the marks, once that has come; None as the mark at the end."""
        before = ""
        while True:
            said, mark = self.feed.until(*marks)
            before += said
            if mark is not None or not (yield from self.more()):
                return before + ("" if mark else self.feed.cut(len(self.feed.text))), mark

    def say_until(self, *marks: str, is_thought: bool = False) -> Steps[str | None]:
        """Content, as it comes, before the first of the marks."""
        begins = frozenset(mark[0] for mark in marks)
        while True:
            said, mark = self.feed.until(*marks)
            if is_thought and said:
                yield Piece(said, is_thought=True)
            elif said:
                yield from self.say(said)
            if mark is not None:
                return mark
            self._begins, self._is_thought = begins, is_thought
            has_more = yield from self.more()
            self._begins = None
            if not has_more:
                return mark

    def say_rest(self) -> Steps[None]:
        """All that comes is content."""
        while True:
            yield from self.say(self.feed.cut(len(self.feed.text)))
            if not (yield from self.more()):
                return

    def _taken(self) -> list[Piece]:
        pieces = []
        for piece in self._steps:
            if piece is None:
                break
            pieces.append(piece)
        return pieces
