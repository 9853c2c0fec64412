"""The output of a response: items as they grow, and the events that tell of it.

Thoughts, text and each call are items of their own, in the order in which they come.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

import msgspec

from llmhost.api.calls import Calls, joined
from llmhost.api.responses.events import Events, Head
from llmhost.api.responses.namespaces import Spaces
from llmhost.api.responses.resource import COMPLETED, IN_PROGRESS, INCOMPLETE
from llmhost.text.calls.pieces import Piece

Item = dict[str, Any]
Seal = Callable[[str], str]
Told = tuple[int, bytes]
"""Of a token: its characters in the text, and its log probabilities as JSON."""

MESSAGE, REASONING, CALL = "message", "reasoning", "function_call"
CUSTOM_CALL = "custom_tool_call"
_PREFIXES = {MESSAGE: "msg", REASONING: "rs", CALL: "fc", CUSTOM_CALL: "ctc"}
_GIVEN = {
    CALL: ("arguments", "response.function_call_arguments"),
    CUSTOM_CALL: ("input", "response.custom_tool_call_input"),
}
"""What calls have of each kind: the member, and the events that tell of it."""


class Items:
    """One response's. `seal` encrypts thoughts, for callers who carry them."""

    def __init__(
        self,
        request_id: str,
        calls: Calls | None,
        events: Events,
        seal: Seal | None = None,
        custom_tools: frozenset[str] = frozenset(),
        spaces: Spaces = MappingProxyType({}),
    ) -> None:
        self.output: list[Item] = []
        self._request_id = request_id
        self._calls = calls
        self._events = events
        self._seal = seal
        self._custom = custom_tools
        self._spaces = spaces
        self._kind = MESSAGE
        """Of the item that is open, as its type says it."""
        self._open: tuple[str, int | None] | None = None
        """Kind of the last item while it is open, and of a call its number."""
        self._texts: list[str] = []
        self._logprobs: list[bytes] = []
        self._tokens: list[Told] = []
        self._head: Head | None = None

    def push(self, text: str, tokens: Sequence[Told] = ()) -> None:
        """Further text of the answer, with what is told of its tokens."""
        pieces = [Piece(text)] if text else []
        if self._calls is not None:
            pieces = joined(self._calls.pieces(0, text))
        self._tokens += tokens
        self._say(pieces)

    def finish(self, *, is_cut: bool = False) -> None:
        """The end of the answer; `is_cut`: it is not the model's own."""
        if self._calls is not None:
            self._say(joined(self._calls.last_pieces(0)))
        if self._open is None and not self.output:
            self._begin(Piece(""))
        is_whole = not is_cut or (self._open is not None and self._is_called(self._open))
        self._close(COMPLETED if is_whole else INCOMPLETE)

    def break_off(self) -> None:
        """No more comes, and no events tell of that."""
        if self._open is not None:
            self.output[-1] = self._filled(INCOMPLETE)
            self._open = None

    def _is_called(self, kind: tuple[str, int | None]) -> bool:
        return kind[0] == CALL and self._calls is not None and self._calls.is_complete(0)

    def _say(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if _kind_of(piece) != self._open:
                self._close(COMPLETED)
                self._begin(piece)
            if piece.text:
                assert self._head is not None
                self._texts.append(piece.text)
                logprobs = self._taken(piece) if self._tokens else b""
                if logprobs:
                    self._logprobs.append(logprobs)
                self._events.say_delta(self._head, piece.text, logprobs)

    def _taken(self, piece: Piece) -> bytes:
        """Of the tokens that have come, those that a piece of text is made of: the last ones. Marks came before."""
        tokens, self._tokens = self._tokens, []
        if _kind_of(piece) != (MESSAGE, None):
            return b""
        left, first = len(piece.text), len(tokens)
        while first and left > 0:
            first -= 1
            left -= tokens[first][0]
        return b",".join(entry for _, entry in tokens[first:])

    def _begin(self, piece: Piece) -> None:
        self._open = _kind_of(piece)
        kind = self._kind = CUSTOM_CALL if piece.name in self._custom else self._open[0]
        place = len(self.output)
        item: Item = {"id": self._name(kind, place), "type": kind, "status": IN_PROGRESS}
        at: Item = {"item_id": item["id"], "output_index": place}
        match kind:
            case "message":
                item |= {"role": "assistant", "content": []}
            case "reasoning":
                item |= {"summary": [], "content": []}
            case _:
                call_id = f"call_{self._digest(f'call/{piece.call}')}"
                item |= {"call_id": call_id, **self._named(piece.name or ""), _GIVEN[kind][0]: ""}
        self.output.append(item)
        self._texts, self._logprobs = [], []
        self._events.say("response.output_item.added", output_index=place, item=item)
        if kind in _GIVEN:
            self._head = Head(f"{_GIVEN[kind][1]}.delta", **at)
            return
        at["content_index"] = 0
        name = "output_text" if kind == MESSAGE else "reasoning_text"
        self._head = Head(f"response.{name}.delta", **at)
        self._events.say("response.content_part.added", **at, part=_part(name, ""))

    def _close(self, status: str) -> None:
        if self._open is None:
            return
        kind, place = self._kind, len(self.output) - 1
        item = self.output[place] = self._filled(status)
        at: Item = {"item_id": item["id"], "output_index": place}
        say, text = self._events.say, "".join(self._texts)
        if kind in _GIVEN:
            member, event = _GIVEN[kind]
            say(f"{event}.done", **at, name=item["name"], **{member: text})
        else:
            at["content_index"] = 0
            part = item["content"][0]
            if kind == MESSAGE:
                told = part["logprobs"]
                say("response.output_text.done", **at, text=text, logprobs=told)
            else:
                say("response.reasoning_text.done", **at, text=text)
            say("response.content_part.done", **at, part=part)
        say("response.output_item.done", output_index=place, item=item)
        self._open = None

    def _filled(self, status: str) -> Item:
        """The open item, with what came of it."""
        assert self._open is not None
        item, text = {**self.output[-1], "status": status}, "".join(self._texts)
        match self._kind:
            case "message":
                logprobs = msgspec.Raw(b"[" + b",".join(self._logprobs) + b"]")
                item["content"] = [{**_part("output_text", text), "logprobs": logprobs}]
            case "reasoning":
                item["content"] = [_part("reasoning_text", text)]
                if self._seal is not None:
                    item["encrypted_content"] = self._seal(text)
            case kind:
                item[_GIVEN[kind][0]] = text
        return item

    def _named(self, name: str) -> Item:
        """A tool's name as its caller knows it."""
        own = self._spaces.get(name)
        return {"name": name} if own is None else {"name": own[1], "namespace": own[0]}

    def _name(self, kind: str, place: int) -> str:
        return f"{_PREFIXES[kind]}_{self._digest(str(place))}"

    def _digest(self, what: str) -> str:
        return blake2b(f"{self._request_id}/{what}".encode(), digest_size=12).hexdigest()


def _kind_of(piece: Piece) -> tuple[str, int | None]:
    """What tells the item that a piece belongs to from its neighbours."""
    if piece.is_thought:
        return REASONING, None
    return (MESSAGE, None) if piece.call is None else (CALL, piece.call)


def _part(kind: str, text: str) -> Item:
    part: Item = {"type": kind, "text": text}
    if kind == "output_text":
        part |= {"annotations": [], "logprobs": []}
    return part
