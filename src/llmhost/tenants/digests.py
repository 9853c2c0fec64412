"""HMAC-SHA256 under one key, for short messages. Pure.

`hmac.digest` of the standard library lets go of the interpreter's lock each time, and so puts each request of the HTTP
loop behind whatever the engine's thread is at. Here the key's two blocks are hashed once, and copies of them go on.
"""

import hashlib

BLOCK_BYTES = 64
"""Of SHA-256; a longer key is hashed first, as RFC 2104 says."""


class Hmac:
    """A function from messages to their 32 bytes."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        if len(key) > BLOCK_BYTES:
            key = hashlib.sha256(key).digest()
        block = key.ljust(BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def __call__(self, message: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()
