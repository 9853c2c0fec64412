"""Names for things that are made here."""

import secrets


def new_request_id() -> str:
    """Ours alone: a client's own id is echoed and never used as a key."""
    return f"req_{secrets.token_hex(12)}"


def new_node_id() -> str:
    return f"node-{secrets.token_hex(4)}"


def new_seed() -> int:
    """A seed for a request that brought none: 63 bits, so that it fits every integer type on the way."""
    return secrets.randbits(63)
