"""Tool calls and thoughts in an answer: from its text, as it comes, to OpenAI's shapes.

An answer that was held to calls is `{"name": ..., "arguments": ...}` or a list of such, spaced as here: the grammar
leaves nothing else. Others have their model's own marks, which `text/calls` reads.
"""

import json
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any

import msgspec

from llmhost.core.grammar import GrammarSpec
from llmhost.core.output import FinishReason
from llmhost.core.request import GenerationRequest
from llmhost.pipeline.reading import Reading
from llmhost.text.calls.inputs import InputText
from llmhost.text.calls.pieces import Piece, Readable
from llmhost.text.calls.thoughts import Thoughts

END_OF_THOUGHTS = "</think>"
CALLED = "tool_calls"
"""Why an answer ended that is calls, and has all of them."""
HELD_TEXTS = frozenset(("json_schema", "json_object", "regex", "lark", "gbnf", "choice"))
"""Grammars that have the whole of an answer, but for thoughts before it."""

_encode = msgspec.json.encode


class CallReader:
    """Finds the calls in one choice's text. Implements Readable."""

    def __init__(self, names: Iterable[str], *, is_list: bool, of_text: Iterable[str] = ()) -> None:
        """Calls of tools in `of_text` have a text instead of arguments, which ends with the answer."""
        self._heads = {f'{{"name": {json.dumps(name)}, "arguments": ': name for name in names}
        self._of_text = {f'{{"name": {json.dumps(name)}, "input": ': name for name in of_text}
        self._heads |= self._of_text
        self._is_list = is_list
        self._calls = 0
        self._held = ""
        self._step = self._begin
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self.is_complete = False

    @property
    def is_within_call(self) -> bool:
        return self._step in (self._argue, self._pour)

    def push(self, text: str) -> list[Piece]:
        self._held += text
        before = None
        pieces: list[Piece] = []
        while self._held and (self._held, self._step) != before:
            before = (self._held, self._step)
            pieces += self._step()
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back of thoughts, at the end."""
        left, self._held = self._held, ""
        return [Piece(left)] if left and self._step == self._think else []

    def _begin(self) -> list[Piece]:
        """A call's head, or the list's end; anything else before the first call is thoughts."""
        before = "" if not self._is_list else ", " if self._calls else "["
        for head, name in self._heads.items():
            if self._held.startswith(before + head):
                self._held = self._held[len(before + head) :]
                self._calls += 1
                self._step = self._pour if head in self._of_text else self._argue
                return [Piece("", self._calls - 1, name)]
        if self._calls and self._held.startswith("]"):
            self._close()
        elif not any((before + head).startswith(self._held) for head in self._heads):
            self._step = self._think
        return []

    def _think(self) -> list[Piece]:
        thoughts, mark, after = self._held.partition(END_OF_THOUGHTS)
        if mark:
            self._held, self._step = after, self._begin
            return [Piece(thoughts + mark)]
        keep = _overlap(self._held, END_OF_THOUGHTS)
        said, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return [Piece(said)] if said else []

    def _argue(self) -> list[Piece]:
        """Arguments end where a brace closes that none of them opened: the call's own."""
        call = self._calls - 1
        for place, char in enumerate(self._held):
            if self._in_string:
                self._in_string = self._is_escaped or char != '"'
                self._is_escaped = not self._is_escaped and char == "\\"
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]" and self._depth:
                self._depth -= 1
            elif char == "}":
                said, self._held = self._held[:place], self._held[place + 1 :]
                self._step = self._begin
                if not self._is_list:
                    self._close()
                return [Piece(said, call)] if said else []
        said, self._held = self._held, ""
        return [Piece(said, call)]

    def _pour(self) -> list[Piece]:
        said, self._held, self.is_complete = self._held, "", True
        return [Piece(said, self._calls - 1)] if said else []

    def _close(self) -> None:
        self._held, self.is_complete = "", True
        self._step = self._rest

    def _rest(self) -> list[Piece]:
        self._held = ""
        return []


def _overlap(text: str, mark: str) -> int:
    """Characters at the end of `text` that may be the beginning of `mark`."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)


def calls_of(request: GenerationRequest, reading: Reading | None = None) -> "Calls | None":
    """None where all of the answer is content."""
    spec = request.grammar
    if spec is not None and spec.kind == "tool_calls":
        return Calls(request, _held_to_calls(spec, reading), may_call=True, of_text=_of_text(spec))
    if reading is None:
        return None
    is_text = spec is not None and spec.kind in HELD_TEXTS and not request.may_call
    make = reading.text_reader if is_text else reading.reader
    return Calls(request, make, may_call=request.may_call, most=request.most_calls)


def _of_text(spec: GrammarSpec) -> frozenset[str]:
    """Tools whose calls have their text as it is."""
    return frozenset(tool["name"] for tool in json.loads(spec.text)["tools"] if "lark" in tool)


def _held_to_calls(spec: GrammarSpec, reading: Reading | None) -> Callable[[], Readable]:
    wish = json.loads(spec.text)
    of_text = [tool["name"] for tool in wish["tools"] if "lark" in tool]
    names = [tool["name"] for tool in wish["tools"] if "lark" not in tool]
    is_list: bool = wish["many"]

    def make() -> Readable:
        reader = CallReader(names, is_list=is_list, of_text=of_text)
        if reading is None or reading.thoughts is None:
            return reader
        return Thoughts(reader, reading.thoughts, begun=reading.begun)

    return make


class Calls:
    """The calls and thoughts of one request's choices, rendered whole or in pieces."""

    def __init__(
        self,
        request: GenerationRequest,
        make: Callable[[], Readable],
        *,
        may_call: bool,
        most: int | None = None,
        of_text: frozenset[str] = frozenset(),
    ) -> None:
        self._custom = request.custom_tools
        self._escaped = request.custom_tools - of_text
        """Custom tools whose text is in an object, as JSON writes it."""
        self._inputs: dict[tuple[int, int | None], InputText] = {}
        self._names: dict[tuple[int, int | None], str] = {}
        """Of calls, by choice and number, where some may be of custom tools."""
        self._request_id = request.request_id
        self._hides_thoughts = request.hides_thoughts
        self._make = make
        self._most = most
        self._readers: dict[int, Readable] = {}
        self._begun: dict[int, int] = {}
        """Calls of each choice, those that are too many among them."""
        self.first_content = b"null" if may_call else b'""'
        """Of a stream's first event."""

    def choice(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        """One of a whole answer's."""
        content: list[str] = []
        thoughts: list[str] = []
        calls: list[dict[str, Any]] = []
        for piece in [*self.pieces(index, text), *self.last_pieces(index)]:
            if piece.is_thought:
                thoughts.append(piece.text)
            elif piece.call is None:
                content.append(piece.text)
            elif piece.name is not None:
                calls.append(self._opening(index, piece.call, piece.name))
            else:
                self._append(calls[piece.call], piece.text)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(content) or (None if calls else ""),
            "refusal": None,
            "annotations": [],
        }
        if thoughts:
            message |= _of_thoughts("".join(thoughts))
        if calls:
            message["tool_calls"] = calls
        return {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": None if reason is None else self.reason(index, reason),
        }

    def deltas(self, index: int, text: str) -> list[bytes]:
        """The member `delta` of each event that tells of further text."""
        pieces = self.pieces(index, text)
        if len(pieces) == 1 and pieces[0].call is None and not pieces[0].is_thought:
            return [b'"delta":{"content":%s}' % _encode(pieces[0].text)]  # as most are
        return [self._delta(index, piece) for piece in joined(pieces)]

    def rest(self, index: int) -> list[bytes]:
        """The same at the end."""
        return [self._delta(index, piece) for piece in joined(self.last_pieces(index))]

    def reason(self, index: int, reason: str) -> str:
        is_called = reason == FinishReason.STOP and self.is_complete(index)
        return CALLED if is_called else reason

    def is_complete(self, index: int) -> bool:
        """There are calls, and all that count have their ends."""
        has_more = self._most is not None and self._begun.get(index, 0) > self._most
        return has_more or self._reader(index).is_complete

    def _delta(self, index: int, piece: Piece) -> bytes:
        if piece.is_thought:
            return b'"delta":' + _encode(_of_thoughts(piece.text))
        if piece.call is None:
            return b'"delta":' + _encode({"content": piece.text})
        call: dict[str, Any] = {"index": piece.call}
        if piece.name is not None:
            call |= self._opening(index, piece.call, piece.name)
        elif self._names.get((index, piece.call)) in self._custom:
            call["custom"] = {"input": piece.text}
        else:
            call["function"] = {"arguments": piece.text}
        return b'"delta":' + _encode({"tool_calls": [call]})

    def _opening(self, index: int, call: int, name: str) -> dict[str, Any]:
        named = blake2b(f"{self._request_id}/{index}/{call}".encode(), digest_size=12).hexdigest()
        id_ = f"call_{named}"
        if name in self._custom:
            return {"id": id_, "type": "custom", "custom": {"name": name, "input": ""}}
        return {"id": id_, "type": "function", "function": {"name": name, "arguments": ""}}

    @staticmethod
    def _append(call: dict[str, Any], text: str) -> None:
        if "custom" in call:
            call["custom"]["input"] += text
        else:
            call["function"]["arguments"] += text

    def pieces(self, index: int, text: str) -> list[Piece]:
        """What further text of a choice tells."""
        return self._plain(index, self._wanted(index, self._reader(index).push(text)))

    def last_pieces(self, index: int) -> list[Piece]:
        """What was held back, at the end."""
        pieces = self._plain(index, self._wanted(index, self._reader(index).finish()))
        for (choice, call), text in self._inputs.items():
            if choice == index and (held := text.finish()):
                pieces.append(Piece(held, call))
        return pieces

    def _plain(self, index: int, pieces: list[Piece]) -> list[Piece]:
        """With what custom tools are given as the text that it is."""
        if not self._custom:
            return pieces
        told = [self._plain_piece((index, piece.call), piece) for piece in pieces]
        return [piece for piece in told if piece is not None]

    def _plain_piece(self, place: tuple[int, int | None], piece: Piece) -> Piece | None:
        if piece.name is not None:
            self._names[place] = piece.name
            if piece.name in self._escaped:
                self._inputs[place] = InputText()
            return piece
        if place not in self._inputs:
            return piece
        text = self._inputs[place].push(piece.text)
        return piece._replace(text=text) if text else None

    def _wanted(self, index: int, pieces: list[Piece]) -> list[Piece]:
        """Without hidden thoughts, and without the calls that are too many and what comes after them."""
        if self._hides_thoughts:
            pieces = [piece for piece in pieces if not piece.is_thought]
        if self._most is None:
            return pieces
        wanted: list[Piece] = []
        for piece in pieces:
            self._begun[index] = self._begun.get(index, 0) + (piece.name is not None)
            if self._begun[index] <= self._most:
                wanted.append(piece)
        return wanted

    def _reader(self, index: int) -> Readable:
        if (reader := self._readers.get(index)) is None:
            reader = self._readers[index] = self._make()
        return reader


def _of_thoughts(text: str) -> dict[str, str]:
    """By both names that clients know them by."""
    return {"reasoning": text, "reasoning_content": text}


def joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring pieces of one call, or of content, as one."""
    fewer: list[Piece] = []
    for piece in pieces:
        if fewer and piece.name is None and fewer[-1][1:] == piece[1:]:
            fewer[-1] = fewer[-1]._replace(text=fewer[-1].text + piece.text)
        else:
            fewer.append(piece)
    return fewer
