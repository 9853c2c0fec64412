"""Events of one response, numbered without a gap."""

from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.encode


class Events:
    """Written one by one; `take` hands over those since it was last asked."""

    def __init__(self, first: int = 0) -> None:
        self.count = first
        """The number of the next one."""
        self._fresh: list[bytes] = []

    def say(self, kind: str, **content: Any) -> None:
        told = {"type": kind, "sequence_number": self.count, **content}
        self._fresh.append(b"event: %s\ndata: %s\n\n" % (kind.encode(), _encode(told)))
        self.count += 1

    def say_delta(self, head: "Head", text: str, logprobs: bytes = b"") -> None:
        """The same of a piece of text, whose event is the same but for that and its number."""
        more = b',"logprobs":[%s]' % logprobs if head.has_logprobs else b""
        self._fresh.append(
            b'%s,"sequence_number":%d%s,"delta":%s}\n\n'
            % (head.text, self.count, more, _encode(text))
        )
        self.count += 1

    def take(self) -> list[bytes]:
        fresh, self._fresh = self._fresh, []
        return fresh


class Head:
    """What stands before every piece of one text."""

    __slots__ = ("has_logprobs", "text")

    def __init__(self, kind: str, **content: Any) -> None:
        told = _encode({"type": kind, **content})[:-1]
        self.text = b"event: %s\ndata: %s" % (kind.encode(), told)
        self.has_logprobs = kind == "response.output_text.delta"


class Silence(Events):
    """For answers that are told at once."""

    def say(self, kind: str, **content: Any) -> None:
        pass

    def say_delta(self, head: Head, text: str, logprobs: bytes = b"") -> None:
        pass
