"""Lines of a batch: what may stand in one, and what is written of its end. Pure."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from llmhost.pipeline.batches.record import Fault

MOST_FAULTS = 100
"""Of an input that can't run; those after them are not told."""
LONGEST_ID = 512
_WINDOW = re.compile(r"(\d{1,5})([hmd])", re.ASCII)
_UNIT_S = {"m": 60, "h": 3_600, "d": 86_400}
SHORTEST_WINDOW_S, LONGEST_WINDOW_S = 60, 7 * 86_400


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One request of the input. Lines count from 1."""

    number: int
    custom_id: str
    body: bytes
    model: str | None


class _Said(msgspec.Struct, kw_only=True):
    """A line as it may come: what is wrong with it is told by name."""

    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Named(msgspec.Struct):
    model: Any = None


_read = msgspec.json.Decoder(_Said).decode
_read_body = msgspec.json.Decoder(_Named).decode
_encode = msgspec.json.Encoder().encode


def window_s(text: str) -> int | None:
    """Seconds of a completion window such as `24h`, `90m` or `2d`; None for what is none, or too short or long."""
    found = _WINDOW.fullmatch(text)
    if found is None:
        return None
    seconds = int(found[1]) * _UNIT_S[found[2]]
    return seconds if SHORTEST_WINDOW_S <= seconds <= LONGEST_WINDOW_S else None


def read_line(raw: bytes, number: int, endpoint: str) -> Line | Fault:
    """A line, or what is wrong with it. What its body says is for its route to judge."""

    def fault(code: str, message: str, param: str | None = None) -> Fault:
        return Fault(code=code, message=message, line=number, param=param)

    try:
        said = _read(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return fault("invalid_json_line", f"This line is no JSON object: {error}.")
    if not isinstance(said.custom_id, str) or not 0 < len(said.custom_id) <= LONGEST_ID:
        return fault(
            "missing_required_parameter",
            f"Each line needs a 'custom_id' of 1 to {LONGEST_ID} characters.",
            "custom_id",
        )
    if said.method != "POST":
        return fault("invalid_method", "The 'method' of a line must be 'POST'.", "method")
    if not isinstance(said.url, str) or said.url.rstrip("/") != endpoint:
        return fault(
            "invalid_url",
            f"The 'url' of each line must be the batch's endpoint, which is {endpoint!r}.",
            "url",
        )
    try:
        named = _read_body(said.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return fault("invalid_request", "The 'body' of a line must be an object.", "body")
    model = named.model if isinstance(named.model, str) else None
    return Line(number=number, custom_id=said.custom_id, body=bytes(said.body), model=model)


class Check:
    """Looks at all lines of an input in turn, and remembers what it must of them."""

    def __init__(self, endpoint: str, *, most_lines: int, longest_bytes: int) -> None:
        self.total = 0
        self.faults: list[Fault] = []
        self._endpoint = endpoint
        self._most_lines = most_lines
        self._longest_bytes = longest_bytes
        self._ids: dict[str, int] = {}
        self._models: set[str | None] = set()

    @property
    def is_hopeless(self) -> bool:
        return len(self.faults) >= MOST_FAULTS or self.total > self._most_lines

    @property
    def model(self) -> str | None:
        """What all ask, where all ask the same."""
        return next(iter(self._models)) if len(self._models) == 1 else None

    def look(self, raw: bytes, number: int) -> None:
        self.total += 1
        if self.total > self._most_lines:
            self.faults = [
                Fault(
                    code="too_many_lines",
                    message=f"The file has more than {self._most_lines} lines, which a batch may have. Split it.",
                )
            ]
            return
        found = self._read(raw, number)
        if isinstance(found, Line):
            self._models.add(found.model)
            found = self._twice(found) or found
        if isinstance(found, Fault):
            self.faults.append(found)

    def _read(self, raw: bytes, number: int) -> Line | Fault:
        if len(raw) - raw.endswith(b"\n") <= self._longest_bytes:
            return read_line(raw, number, self._endpoint)
        return Fault(
            code="line_too_long",
            message=f"This line has more than {self._longest_bytes} bytes, which a request may have.",
            line=number,
        )

    def end(self) -> None:
        """All lines have been looked at."""
        if not self.total:
            self.faults.append(Fault(code="empty_file", message="The file has no lines."))

    def _twice(self, line: Line) -> Fault | None:
        first = self._ids.setdefault(line.custom_id, line.number)
        if first == line.number:
            return None
        return Fault(
            code="duplicate_custom_id",
            message=f"The 'custom_id' {line.custom_id[:80]!r} is that of line {first}, too.",
            line=line.number,
            param="custom_id",
        )


def numbered(raws: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, without those that are blank."""
    for number, raw in enumerate(raws, 1):
        if raw.strip():
            yield number, raw


def request_id_of(batch_id: str, line: int) -> str:
    """The id of a line's request: the same whenever it is run, so that it can be billed once only."""
    return f"req_{batch_id.rpartition('_')[2]}_{line}"


def answered(batch_id: str, line: Line, status: int, body: bytes) -> bytes:
    """A line of the output, or, where the status is an error, of the error file."""
    request_id = request_id_of(batch_id, line.number)
    return _encode(
        {
            "id": f"batch_{request_id}",
            "custom_id": line.custom_id,
            "response": {
                "status_code": status,
                "request_id": request_id,
                "body": msgspec.Raw(body),
            },
            "error": None,
        }
    )


def not_run(batch_id: str, line: Line, code: str, message: str) -> bytes:
    """The error file's line of a request that was never made."""
    return _encode(
        {
            "id": f"batch_{request_id_of(batch_id, line.number)}",
            "custom_id": line.custom_id,
            "response": None,
            "error": {"code": code, "message": message},
        }
    )
