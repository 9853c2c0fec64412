"""Names for things that are made here."""

import os
import random
import secrets

DIGITS = 24
DRAWN_AT_ONCE = 256
_names: list[str] = []
_seeds = random.Random(secrets.randbits(256))  # repeats nothing, and guards nothing


def new_request_id() -> str:
    """Ours alone: a client's own id is echoed and never used as a key."""
    try:
        return f"req_{_names.pop()}"
    except IndexError:
        # Asked for each name, the kernel would have a busy thread let go of the interpreter each time.
        drawn = os.urandom(DIGITS // 2 * DRAWN_AT_ONCE).hex()
        name, *more = (drawn[at : at + DIGITS] for at in range(0, len(drawn), DIGITS))
        _names.extend(more)
        return f"req_{name}"


def new_node_id() -> str:
    return f"node-{secrets.token_hex(4)}"


def new_seed() -> int:
    """A seed for a request that brought none: 63 bits, so that it fits every integer type on the way."""
    return _seeds.getrandbits(63)
