"""Thoughts before, or between, what an answer says."""

from llmhost.text.calls.pieces import Piece, Readable, Reader, Steps


class Thoughts(Reader):
    """Tells what stands between two marks as thoughts, and has another reader read the rest."""

    def __init__(self, inner: Readable, marks: tuple[str, str], *, begun: bool = False) -> None:
        self._inner = inner
        self._marks = marks
        self._begun = begun
        super().__init__()

    @property
    def is_complete(self) -> bool:
        return self._inner.is_complete

    def finish(self) -> list[Piece]:
        return [*super().finish(), *self._inner.finish()]

    def read(self) -> Steps[None]:
        begin, end = self._marks
        is_thinking = self._begun
        while True:
            if is_thinking:
                yield from self.say_until(end, is_thought=True)
                yield from self._skip_lines()
            # A model whose prompt begins its thoughts may not say so, and one without thoughts may say their end.
            mark = yield from self._pass_on(begin, end)
            if mark is None:
                return
            is_thinking = mark == begin
            if not is_thinking:
                yield from self._skip_lines()

    def _pass_on(self, *marks: str) -> Steps[str | None]:
        begins = frozenset(mark[0] for mark in marks)
        while True:
            said, mark = self.feed.until(*marks)
            if said:
                yield from self._inner.push(said)
            if mark is not None and self._inner.is_within_call:  # it is of the call's arguments
                yield from self._inner.push(mark)
                continue
            if mark is not None:
                return mark
            self._begins, self._is_thought = begins, False
            has_more = yield from self.more()
            self._begins = None
            if not has_more:
                return mark

    def _plain(self, text: str) -> list[Piece]:
        return super()._plain(text) if self._is_thought else self._inner.push(text)

    def _skip_lines(self) -> Steps[None]:
        """Line ends between thoughts and what comes after them belong to neither."""
        while True:
            self.feed.text = self.feed.text.lstrip("\n")
            if self.feed.text or not (yield from self.more()):
                return
