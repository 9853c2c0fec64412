"""Log lines: `noun.verb key=value`, one per committed change, with the request's id. Prompts never.

`log_event` is for lines with facts, so that the JSON form keeps them as fields.
"""

import json
import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def log_event(
    logger: logging.Logger, name: str, *, level: int = logging.INFO, **facts: Any
) -> None:
    """One line: a `noun.verb` and its facts. Facts that are None are left out."""
    if logger.isEnabledFor(level):
        known = {key: value for key, value in facts.items() if value is not None}
        logger.log(level, name, extra={"facts": known})


def start_logging(level: str, form: Literal["text", "json"]) -> None:
    """Send the log to stderr. Called once, by the process that serves."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("llmhost").setLevel(level.upper())
    logging.captureWarnings(capture=True)


_KEY = re.compile(r"(\w+)=%")


def _event(record: logging.LogRecord) -> str:
    """The `noun.verb`: what stands before the facts, if the line was written as `noun.verb key=%s`."""
    if isinstance(record.msg, str) and isinstance(record.args, tuple) and _keys(record):
        return record.msg.partition(" ")[0]
    return record.getMessage()


def _keys(record: logging.LogRecord) -> list[str]:
    """Names of the facts in a `noun.verb key=%s` line; none where they don't account for every argument."""
    keys = _KEY.findall(str(record.msg))
    return keys if record.args and len(keys) == len(record.args) else []


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts = dict(getattr(record, "facts", {}))
    if isinstance(record.args, tuple):
        facts |= zip(_keys(record), record.args, strict=False)
    current = request_id.get()
    if current is not None and "request" not in facts:
        facts["request"] = current
    return facts


def _quoted(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if text and text.isprintable() and not set(text) & set(' "='):
        return text
    # Callers make up names: nothing of theirs may end a line or steer a terminal. JSON leaves DEL as it is.
    return json.dumps(text, ensure_ascii=not text.isprintable()).replace("\x7f", "\\u007f")


class TextLines(logging.Formatter):
    """For people: time, level, event, facts."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        facts = "".join(f" {key}={_quoted(value)}" for key, value in _facts(record).items())
        line = f"{at} {record.levelname.lower():7} {_event(record)}{facts}"
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
