"""What most text lacks, found out before anything is looked for: tables of bytes are faster than expressions.

What is not ASCII is one strange byte each; nothing that these ask about has any.
"""

import re
import string

LONG_RUN = 20
"""Letters, digits, - and _ in a row, which every token has and few words do."""
BEFORE = 12
"""What may come before a token's run and tells what it is, such as `ya29.`"""
LEAST_DIGITS = 7
"""Fewer than any number that is looked for has in its longest part."""

_TOKEN = (string.ascii_letters + string.digits + "-_").encode()
_AS_RUN = bytes(97 if byte in _TOKEN else 32 for byte in range(256))
_RUN = b"a" * LONG_RUN
_NO_DIGITS = bytes(byte for byte in range(256) if byte not in string.digits.encode())
_DIGITS = re.compile(r"[0-9][0-9 ()./\-]{5,}[0-9]")


def long_runs(text: str, data: bytes) -> str:
    """The long runs of a text, each with the few characters before it; empty where there are none."""
    marked = data.translate(_AS_RUN)
    start = marked.find(_RUN)
    if start < 0:
        return ""
    runs = []
    while start >= 0:
        end = marked.find(b" ", start)
        end = len(text) if end < 0 else end
        runs.append(text[max(start - BEFORE, 0) : end])
        start = marked.find(_RUN, end)
    return "\n".join(runs)


def has_number(text: str, data: bytes) -> bool:
    """Whether there is a number of several digits, however it is grouped."""
    return (
        len(data.translate(None, _NO_DIGITS)) >= LEAST_DIGITS and _DIGITS.search(text) is not None
    )
