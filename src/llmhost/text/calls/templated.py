"""Answers read by the template that came with the model.

Text is told as soon as no mark can begin in it, and a call as it comes where the template's outline allows that, else
when its part has ended, because only then it is known what the part says. A part that is no call is content, marks and
all.
"""

from typing import Any, NamedTuple

from llmhost.text.calls.call_bodies import Body, body_of
from llmhost.text.calls.pieces import Piece, Reader, Steps
from llmhost.text.calls.response_template import Anchor, Part, ResponseTemplate, Role
from llmhost.text.calls.tagged import Schemas
from llmhost.text.calls.template_values import (
    MOST_SECONDS,
    Call,
    calls_in,
    items_of,
    parsed,
    placed,
)

MOST_HELD = 8192
"""Characters that may be the beginning of a mark. More are none."""
MOST_AT_ONCE = 256
"""Characters that are searched together, but for what is held."""
_CONTEXT = 64
"""Characters before what is looked at, for patterns that look back."""


class _Found(NamedTuple):
    """A mark. The first counts; of two at one place the longer one, then one that begins a part."""

    start: int
    minus_length: int
    is_close: bool
    name: str
    part: Part
    match: Any


class Templated(Reader):
    """`before`: what the prompt says of the answer already, which is not told again."""

    def __init__(self, template: ResponseTemplate, schemas: Schemas, before: str = "") -> None:
        self._template = template
        self._schemas = schemas
        self._rest = template.rest
        self._part = self._rest
        self._opener = ""
        self._captures: dict[str, str] = {}
        self._body = ""
        """Of a part that is calls."""
        self._told: Body | None = None
        """What tells such a part before its end."""
        self._is_broken = False
        """A call that was told ends as none can."""
        self._context = ""
        self._has_text = False
        """The part has said something."""
        self._gap = ""
        """White space that is the part's only if more comes."""
        self._said: set[Role] = set()
        self._is_lost = False
        """A search took too long, so no mark is looked for any more."""
        super().__init__()
        if before:
            self.push(before)
            self.calls, self._gap, self._said = 0, "", set()

    @property
    def is_complete(self) -> bool:
        return super().is_complete and not self._is_broken

    def push(self, text: str) -> list[Piece]:
        """In parts, as each mark has all that is there searched anew."""
        parts = [text[at : at + MOST_AT_ONCE] for at in range(0, len(text), MOST_AT_ONCE)]
        return [piece for part in parts for piece in super(Templated, self).push(part)]

    def read(self) -> Steps[None]:
        while True:
            found, sure = self._look()
            if found is not None:
                yield from self._take(found.start)
                mark = self._cut(found.match.end() - found.match.start())
                if found.is_close:
                    yield from self._close(mark)
                else:
                    yield from self._close("")
                    self._open(found, mark)
                if found.minus_length or found.start or found.part is not self._rest:
                    continue
            yield from self._take(sure)
            if not (yield from self.more()):
                yield from self._take(len(self.feed.text))
                yield from self._close(None)
                return

    # ---------------------------------------------------------------- marks

    def _look(self) -> tuple[_Found | None, int]:
        """The first mark that is certain, and how many characters are in none."""
        text, start = self._context + self.feed.text, len(self._context)
        sure, found = len(text), []
        for part, anchor, is_close in self._watched():
            if anchor.begins and anchor.begins.isdisjoint(self.feed.text):
                continue
            match = self._search(anchor, text, start)
            if match is None:
                continue
            if not self.feed.is_over and (match.partial or _may_grow(anchor, match, len(text))):
                sure = min(sure, match.start())
            else:
                length = match.end() - match.start()
                at = match.start() - start
                found.append(_Found(at, -length, is_close, part.name, part, match))
        first = min(found, default=None)
        if len(text) - sure > MOST_HELD:
            sure = len(text)
        if first is not None and first.start + start >= sure:
            first = None
        return first, sure - start

    def _watched(self) -> list[tuple[Part, Anchor, bool]]:
        part = self._part
        if self._is_lost:
            return []
        closes = [] if part is None or part.closes is None else [(part, part.closes, True)]
        if part is not self._rest:
            return closes
        opens = [(each, each.opens, False) for each in self._template.parts if each.opens]
        return [*opens, *closes]

    def _search(self, anchor: Anchor, text: str, start: int) -> Any:
        try:
            return anchor.pattern.search(
                text, start, partial=not self.feed.is_over, timeout=MOST_SECONDS
            )
        except TimeoutError:
            self._is_lost = True
            return None

    def _cut(self, count: int) -> str:
        text = self.feed.cut(count)
        self._context = (self._context + text)[-_CONTEXT:]
        return text

    # ---------------------------------------------------------------- parts

    def _open(self, found: _Found, mark: str) -> None:
        groups = found.match.groupdict()
        self._part, self._opener = found.part, mark
        self._captures = {name: text for name, text in groups.items() if text is not None}
        self._told = self._teller(found.part)
        self.is_within_call = found.part.role == "call"

    def _take(self, count: int) -> Steps[None]:
        """So many characters are the part's."""
        text = self._cut(count)
        if not text or self._part is None:
            return
        if self._part.role != "call":
            yield from self._tell(self._part, text)
            return
        if self._told is None or not self._told.calls:
            self._body += text
        if self._told is not None:
            yield from self._tell_calls(self._told.push(text))

    def _teller(self, part: Part) -> Body | None:
        return body_of(part.parser, part.outline, part.args, self._captures, self._schemas)

    def _tell_calls(self, pieces: list[Piece]) -> Steps[None]:
        for piece in pieces:
            if piece.name is not None:
                yield from self.begin(piece.name)
            else:
                yield Piece(piece.text, self.calls - 1)

    def _tell(self, part: Part, text: str) -> Steps[None]:
        if part.strips:
            text = text if self._has_text else text.lstrip()
            said = text.rstrip()
            text, self._gap = (
                (self._gap + said if said else ""),
                (text[len(said) :] if said else self._gap + text),
            )
        if not text:
            return
        if not self._has_text and part.role in self._said:
            text = ("\n" if part.join is None else part.join) + text
        self._has_text = True
        self._said.add(part.role)
        yield Piece(text, is_thought=part.role == "thought")

    def _close(self, mark: str | None) -> Steps[None]:
        """The part has ended, with a mark or, where that is None, with the answer."""
        part, body = self._part, self._body
        if self._told is not None:
            yield from self._tell_calls(self._told.finish())
        if self._told is not None and self._told.calls:
            self._is_broken |= self._told.has_failed
            self.is_within_call = mark is None and self._told.is_within_call
        elif part is not None and part.role == "call" and (self._opener or body.strip()):
            yield from self._end_call(part, body, mark)
        self._part, self._opener, self._captures = self._rest, "", {}
        self._told = None
        self._body, self._gap, self._has_text = "", "", False
        if mark is not None:
            self.is_within_call = False

    def _end_call(self, part: Part, body: str, mark: str | None) -> Steps[None]:
        calls = self._calls(part, body)
        if calls is None:
            self.is_within_call = False
            text = self._opener + body + (mark or "")
            self._said.add("content")
            yield Piece(text)
            return
        for name, arguments in calls:
            call = yield from self.begin(name)
            yield Piece(arguments, call)
        # A whole JSON value has its end in itself. Of others nobody knows whether more was to come.
        self.is_within_call = mark is None and part.parser != "json"

    def _calls(self, part: Part, body: str) -> list[Call] | None:
        """None where the part is none."""
        try:
            value = parsed(body, part.parser, part.args)
            if part.transform is not None and part.is_each:
                value = [placed(part.transform, self._captures | item) for item in items_of(value)]
            elif part.transform is not None:
                value = placed(part.transform, {**self._captures, "content": value})
            return calls_in(value, self._schemas)
        except (ValueError, RecursionError, OverflowError, TimeoutError):
            return None


def _may_grow(anchor: Anchor, match: Any, end: int) -> bool:
    """Whether a match at the end of the text may become another one with what comes."""
    return match.end() == end and (match.start() == end or anchor.may_grow)
