"""Files in a conversation, as text: those that came with it, and the places of those that it names by their ids.

A file that is named is read once its caller is known. Until then a mark that nobody can guess stands for it.
"""

import base64
import binascii
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llmhost.core.errors import InvalidValue, UnsupportedParameter

_SECRET = secrets.token_hex(16)
_BEGIN = f"\x00file {_SECRET} "
_MARK = re.compile(re.escape(_BEGIN) + "([^\x00]*)\x00([^\x00]*)\x00")
_DATA_URL = re.compile(r"data:([^;,]*)((?:;[^;,]*)*),", re.IGNORECASE)
_TEXT_TYPES = re.compile(
    r"text/[\w.+-]+|application/(?:(?:[\w.-]+\+)?(?:json|xml|yaml)|x-ndjson|jsonl|x-yaml|toml|sql|csv|javascript|"
    r"typescript|x-sh|x-python)|",
    re.IGNORECASE,
)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
FETCHES_NOTHING = (
    "This server fetches nothing. Send the file's content, or upload it and name its id."
)
KNOWN = "text/plain, text/markdown, text/csv, application/json and others that are text in UTF-8"


@dataclass(frozen=True, slots=True)
class Named:
    """A file that a conversation names."""

    file_id: str
    param: str
    """The field that names it."""
    mark: str
    """What stands for it."""


def mark_of(file_id: str, param: str) -> str:
    """Stands for the text of a file until that is read. Raises InvalidValue for what is no id."""
    if not file_id or len(file_id) > 200 or "\x00" in file_id:
        raise InvalidValue("A file's id is what its upload was answered with.", param=param)
    return f"{_BEGIN}{file_id}\x00{param}\x00"


def has_marks(text: str) -> bool:
    return _BEGIN in text


def named_in(text: str) -> Iterator[Named]:
    for found in _MARK.finditer(text):
        yield Named(found[1], found[2], found[0])


def with_texts(text: str, texts: Mapping[str, str]) -> str:
    """With what `texts` has for each mark, in one go: text that was put in is not looked at again."""
    return _MARK.sub(lambda found: texts[found[0]], text)


def file_of_data(data: str, name: str | None, param: str) -> str:
    """The text of a file that came as a data URL, or as base64 alone. Raises BadRequest."""
    head = _DATA_URL.match(data)
    kind, is_plain = (head[1], "base64" not in head[2].lower()) if head else ("", False)
    if not _TEXT_TYPES.fullmatch(kind):
        raise UnsupportedParameter(
            f"Files of type {kind[:80]!r} are not supported; this server takes {KNOWN}.",
            param=param,
        )
    body = data[head.end() :] if head else data
    if _URL.match(body):
        raise UnsupportedParameter(FETCHES_NOTHING, param=param)
    if is_plain:
        raise InvalidValue("A data URL of a file has its content as base64.", param=param)
    try:
        content = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidValue("The content of the file is not valid base64.", param=param) from None
    return file_text(content, name, param)


def file_text(content: bytes, name: str | None, param: str) -> str:
    """A file as it stands in a prompt. Raises UnsupportedParameter for what is no text."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\x00"
    if "\x00" in text:
        what = "The file" if name is None else f"The file {name[:80]!r}"
        raise UnsupportedParameter(
            f"{what} is no text in UTF-8; this server takes {KNOWN}.", param=param
        )
    return enclosed(text, name)


def enclosed(text: str, name: str | None) -> str:
    """A text with its name around it, as models know documents."""
    said = "" if not name else ' name="{}"'.format(name.replace('"', "'").replace("\n", " ")[:255])
    end = "" if text.endswith("\n") else "\n"
    return f"<file{said}>\n{text}{end}</file>\n"
