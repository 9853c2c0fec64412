"""Log lines: `noun.verb key=value`, one per committed change, with the request's id. Prompts never.

`log_event` is for lines with facts, so that the JSON form keeps them as fields.
"""

import asyncio
import json
import logging
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, TextIO

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def log_event(
    logger: logging.Logger, name: str, *, level: int = logging.INFO, **facts: Any
) -> None:
    """One line: a `noun.verb` and its facts. Facts that are None are left out."""
    if logger.isEnabledFor(level):
        log_facts(logger, name, facts, level=level)


def log_facts(logger: logging.Logger, name: str, facts: dict[str, Any], *, level: int) -> None:
    """The same of a level that is heard."""
    alone = alone_for(logger)
    if alone is not None:
        alone.say(level, name, text_of(facts), request=facts.get("request"))
        return
    known = {key: value for key, value in facts.items() if value is not None}
    logger.log(level, name, extra={"facts": known})


def alone_for(logger: logging.Logger) -> "Gatherer | None":
    """The only one that hears what a logger says, if it writes text for people: then no record need be made."""
    if logger.filters:
        return None
    above: logging.Logger | None = logger
    while above is not None and not above.handlers:
        above = above.parent if above.propagate else None
    if above is None or above.parent is not None or len(above.handlers) != 1:
        return None
    alone = above.handlers[0]
    return alone if type(alone) is Gatherer and alone.writes_text else None


def text_of(facts: Mapping[str, Any]) -> str:
    """Facts as they stand in a line for people, a space before each. Those that are None are left out."""
    told = ""
    for key, value in facts.items():
        if value is None:
            continue
        kind = type(value)
        # Most are numbers, ids and names of one word: a call for each is half of it all.
        if kind is not int and not (kind is str and value.isidentifier() and value.isascii()):
            value = _quoted(value)
        told += f" {key}={value}"
    return told


def start_logging(level: str, form: Literal["text", "json"]) -> None:
    """Send the log to stderr. Called once, by the process that serves."""
    # Nothing that is written says which thread, process or line it comes from, so nobody need find that out.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = Gatherer(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("llmhost").setLevel(level.upper())
    logging.captureWarnings(capture=True)


class Gatherer(logging.StreamHandler[TextIO]):
    """Writes what one turn of the event loop logs at once, before its next turn; from other threads, and where
    something is wrong, right away."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []

    @property
    def writes_text(self) -> bool:
        """It takes every line, and writes it as `TextLines` does."""
        return type(self.formatter) is TextLines and not self.filters and not self.level

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._take(record.levelno, self.format(record))
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            self.handleError(record)

    def say(self, level: int, name: str, text: str, *, request: str | None = None) -> None:
        """As `emit` of a record with facts of which this is the text; `request` is the one that they name."""
        line = f"{_begun(time.time(), level)} {name}{text}"
        if request is None and (current := request_id.get()) is not None:
            line += f" request={_quoted(current)}"
        with self.lock or nullcontext():
            self._take(level, line)

    def say_all(self, level: int, lines: Sequence[str]) -> None:
        """As `say` of each, of one moment: a name, and facts that name a request."""
        begun = _begun(time.time(), level)
        with self.lock or nullcontext():
            for line in lines:
                self._take(level, f"{begun} {line}")

    def _take(self, level: int, line: str) -> None:
        try:
            self._lines.append(line)
            if level >= logging.WARNING:
                self.flush()
            elif len(self._lines) == 1:
                asyncio.get_running_loop().call_soon(self.flush)
        except RuntimeError:  # no loop runs here
            self.flush()

    def flush(self) -> None:
        with self.lock or nullcontext():
            lines, self._lines = self._lines, []
            # Whoever read the log may be gone, and there is no other place to say so.
            with suppress(OSError, ValueError):
                if lines:
                    self.stream.write("\n".join([*lines, ""]))
                    self.stream.flush()


_KEY = re.compile(r"(\w+)=%")
_PLAIN = re.compile(r"[!#-<>-~]+")
"""What needs no quotes: ASCII without space, quote and equals sign."""


def _event(record: logging.LogRecord) -> str:
    """The `noun.verb`: what stands before the facts, if the line was written as `noun.verb key=%s`."""
    if isinstance(record.msg, str) and isinstance(record.args, tuple) and _keys(record):
        return record.msg.partition(" ")[0]
    return record.getMessage()


def _keys(record: logging.LogRecord) -> list[str]:
    """Names of the facts in a `noun.verb key=%s` line; none where they don't account for every argument."""
    if not record.args:
        return []
    keys = _KEY.findall(str(record.msg))
    return keys if len(keys) == len(record.args) else []


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts = dict(getattr(record, "facts", {}))
    if isinstance(record.args, tuple):
        facts |= zip(_keys(record), record.args, strict=False)
    current = request_id.get()
    if current is not None and "request" not in facts:
        facts["request"] = current
    return facts


def _quoted(value: Any) -> str:
    kind = type(value)
    if kind is int:
        return str(value)
    if kind is float:
        return f"{value:g}"
    text = str(value)
    return _quoted_again(text) if len(text) <= _SHORT else _quoted_text(text)


def _quoted_text(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    if text and text.isprintable() and not set(text) & set(' "='):
        return text
    # Callers make up names: nothing of theirs may end a line or steer a terminal. JSON leaves DEL as it is.
    return json.dumps(text, ensure_ascii=not text.isprintable()).replace("\x7f", "\\u007f")


_SHORT = 64
_quoted_again = lru_cache(1024)(_quoted_text)
"""For names, which are the same in many lines."""


@lru_cache(4)
def _clock(utc_s: int) -> str:
    return datetime.fromtimestamp(utc_s, UTC).strftime("%H:%M:%S")


def _begun(created: float, level: int) -> str:
    """A line's time and level."""
    whole = int(created)
    return f"{_clock(whole)}.{int((created - whole) * 1000):03d} {_padded(level)}"


@lru_cache(16)
def _padded(level: int) -> str:
    return f"{logging.getLevelName(level).lower():7}"


class TextLines(logging.Formatter):
    """For people: time, level, event, facts."""

    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {key}={_quoted(value)}" for key, value in _facts(record).items())
        line = f"{_begun(record.created, record.levelno)} {_event(record)}{facts}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """For collectors: one object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": _event(record),
            **_facts(record),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
