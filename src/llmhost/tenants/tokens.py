"""The text form of an API key: `lh-sk-<public id>-<secret><checksum>`, all base62.

The prefix is for secret scanners, the public id for logs and commands, the checksum tells a slip of the hand from a
key that is not known, without looking anything up. Which keys exist is not known here.
"""

import re
import secrets
import zlib

from llmhost.core.errors import Unauthenticated

PREFIX = "lh-sk-"
PUBLIC_ID_CHARS = 12
SECRET_CHARS = 43
"""43 base62 characters hold 256 bits."""
CHECKSUM_CHARS = 6

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SHAPE = re.compile(
    rf"{PREFIX}[0-9A-Za-z]{{{PUBLIC_ID_CHARS}}}-[0-9A-Za-z]{{{SECRET_CHARS + CHECKSUM_CHARS}}}"
)


def new_token() -> tuple[str, str]:
    """A public id, and the whole key that carries it."""
    return new_secret(_random(PUBLIC_ID_CHARS))


def new_secret(public_id: str) -> tuple[str, str]:
    """The same for a public id that there is."""
    body = f"{PREFIX}{public_id}-{_random(SECRET_CHARS)}"
    return public_id, body + checksum(body)


def checksum(body: str) -> str:
    """CRC-32 of everything before it, as base62: finds every single wrong character and almost every other slip."""
    rest = zlib.crc32(body.encode())
    letters = ""
    for _ in range(CHECKSUM_CHARS):
        rest, digit = divmod(rest, len(_ALPHABET))
        letters = _ALPHABET[digit] + letters
    return letters


def check_form(token: str) -> None:
    """Raises Unauthenticated, saying how, when this can't be a key of ours. Never repeats what was sent."""
    if not token.startswith(PREFIX):
        raise Unauthenticated(
            f"This is not an API key of this server: its keys begin with '{PREFIX}'."
            " Is a key of another service set in the client?"
        )
    if _SHAPE.fullmatch(token) is None:
        length = len(PREFIX) + PUBLIC_ID_CHARS + 1 + SECRET_CHARS + CHECKSUM_CHARS
        raise Unauthenticated(
            f"The API key looks cut or mistyped: it should be {length} characters long, letters and digits"
            f" after '{PREFIX}' with one '-' between. Copy it again from where it was shown."
        )
    if checksum(token[:-CHECKSUM_CHARS]) != token[-CHECKSUM_CHARS:]:
        raise Unauthenticated(
            "The API key looks mistyped: its last characters don't fit the rest."
            " Copy it again from where it was shown."
        )


def _random(count: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(count))
