"""JSON at the edge: whole bodies, and single fields that are looked at as text until it is known what they are for."""

import re
from typing import TypeVar

import msgspec

from llmhost.api.choices import choices
from llmhost.core.errors import BadRequest, InvalidValue, MissingParameter, UnsupportedParameter

Raw = msgspec.Raw
"""A field that is looked at as text: objects made of it would take many times its size."""
NULL = Raw(b"null")

B = TypeVar("B", bound=msgspec.Struct)
T = TypeVar("T")

_GZIP = b"\x1f\x8b"
_HALF = re.compile(
    rb"(?<!\\)(?:\\\\)*+(\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
"""One of two escapes that mean a character together, without the other; a backslash before may be an escaped one."""
_NOTHING = frozenset({b"null", b"[]", b"{}", b'""', b"false", b"0"})
_AT = re.compile(r" - at (?:`key` in )?`\$\.?(.*)`$")
_INDEX = re.compile(r"\[[^\]]*\]")
_MISSING = re.compile(r"Object missing required field `(.*?)`")


def read_body(raw: bytes, shape: type[B]) -> B:
    """Decode a JSON body. Raises BadRequest that names the field in dotted form."""
    try:
        return msgspec.json.decode(raw, type=shape)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), shape) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The body is not valid JSON: {_fault(raw, error)}") from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None


def _fault(raw: bytes, error: Exception) -> str:
    """Why a body can't be read, in more words for what clients do without meaning to."""
    if raw.startswith(_GZIP):
        return "it is compressed. Send it as it is, without content-encoding."
    if (half := _HALF.search(raw)) is not None:
        found = f"{half[1].decode()} at byte {half.start(1)}"
        return f"{found} is half of a character. A text was cut between its two halves."
    return str(error)


def _refusal(message: str, shape: type[msgspec.Struct]) -> BadRequest:
    at = _AT.search(message)
    param = at[1].replace("[...]", "") if at and at[1] else None
    if (missing := _MISSING.match(message)) is not None:
        return MissingParameter(".".join(filter(None, (param, missing[1]))))
    text = _AT.sub("", message).replace("`", "'") + _instead(message, at, shape)
    return InvalidValue(f"{param}: {text}" if param else text, param=param)


def _instead(message: str, at: re.Match[str] | None, shape: object) -> str:
    """What a field may be that is not one of its words."""
    if not message.startswith("Invalid enum value"):
        return ""
    words = choices(shape, _INDEX.sub("[]", at[1]) if at else "")
    return f"; it may be {', '.join(words)}" if words else ""


def said(raw: Raw) -> bytes:
    """A value's JSON without its white space, for comparing; a long one is none of those that it is compared with."""
    text = bytes(raw)
    return b"".join(text.split()) if len(text) < 100 else text


def asks(raw: Raw) -> bool:
    """It wants something else than what happens anyway, which null, false, 0 and what is empty ask for."""
    return raw is not NULL and said(raw) not in _NOTHING


def loose(raw: Raw, shape: type[T], param: str) -> T | None:
    """The value of a field that was kept as text. Raises BadRequest."""
    if raw is NULL:  # it was not sent
        return None
    try:
        return msgspec.json.decode(raw, type=shape | None)
    except msgspec.ValidationError as error:
        at = _AT.search(str(error))
        text = _AT.sub(" as a key" if "`key` in" in str(error) else "", str(error)).replace(
            "`", "'"
        )
        within = at[1].replace("[...]", "") if at else ""
        text += _instead(str(error), at, shape)
        place = f"{param}{within}" if within.startswith("[") else f"{param}.{within}".rstrip(".")
        if (missing := _MISSING.match(str(error))) is not None:
            raise MissingParameter(f"{place}.{missing[1]}") from None
        raise InvalidValue(f"{place}: {text}", param=place) from None
    except (
        msgspec.DecodeError,
        UnicodeDecodeError,
    ) as error:  # all that is skipped is not looked at closely
        raise InvalidValue(f"'{param}' is not valid JSON: {error}", param=param) from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None


def bounded(raw: Raw, shape: type[T], param: str, *, most: int) -> T | None:
    """As `loose`, for a list or table of scalars with at most `most` entries, counted before anything is made of it."""
    commas = 0 if raw is NULL else bytes(raw).count(b",")
    if commas >= most:
        raise InvalidValue(f"'{param}' has {commas + 1} entries; {most} are allowed.", param=param)
    return loose(raw, shape, param)


def refuse(asked: dict[str, bool]) -> None:
    """Raises UnsupportedParameter for the first that is asked for."""
    for name, is_asked in asked.items():
        if is_asked:
            raise UnsupportedParameter(
                f"The parameter '{name}' is not supported by this version of the server.",
                param=name,
            )
