"""Names for things that are made here."""

import os
import random
import secrets
import sys
import time

DIGITS = 24
DRAWN_AT_ONCE = 256
_drawn: list[str] = []
_seeds = random.Random(secrets.randbits(256))  # repeats nothing, and guards nothing


def new_request_id() -> str:
    """Ours alone: a client's own id is echoed and never used as a key.

    It begins with the time, in parts of 65,536 of a second, so that what is kept by it comes after what was kept before
    it: within a second ids without order would have a commit write a page of each index for every row.
    """
    return f"req_{time.time_ns() * 65_536 // 10**9:012x}{_digits()[:12]}"


def new_id(prefix: str) -> str:
    """A name for what callers keep here, such as `resp_`."""
    return f"{prefix}{_digits()}"


def new_salt() -> str:
    """16 hex digits that nobody can guess."""
    try:
        return _drawn.pop()[:16]  # as `_digits`, without a call
    except IndexError:
        return _digits()[:16]


def new_node_id() -> str:
    return f"node-{secrets.token_hex(4)}"


def new_seed() -> int:
    """A seed for a request that brought none: 63 bits, so that it fits every integer type on the way."""
    return _seeds.getrandbits(63)


def _digits() -> str:
    """Asked each time, the kernel would have a busy thread let go of the interpreter for it."""
    try:
        return _drawn.pop()
    except IndexError:
        drawn = os.urandom(DIGITS // 2 * DRAWN_AT_ONCE).hex()
        first, *more = (drawn[at : at + DIGITS] for at in range(0, len(drawn), DIGITS))
        _drawn.extend(more)
        return first


def _forget() -> None:
    """Two processes must not give the same names."""
    _drawn.clear()
    _seeds.seed(secrets.randbits(256))


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget)
