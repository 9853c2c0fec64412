"""Texts at rest: AES-256-GCM with a random nonce. Which review a text is of, and as what, is sealed in with it, so that
no row's text can be put into another's place."""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES = 12
OVERHEAD_BYTES = NONCE_BYTES + 16
"""By so much a sealed text is longer: its nonce and its tag."""


class Seal:
    """Seals under one secret of 32 bytes."""

    __slots__ = ("_cipher",)

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(secret)

    def close(self, review_id: str, part: str, text: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, text, f"{review_id}\0{part}".encode())

    def open(self, review_id: str, part: str, sealed: bytes) -> bytes | None:
        """The text; None where it was sealed under another secret, or has been tampered with."""
        nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, rest, f"{review_id}\0{part}".encode())
        except (InvalidTag, ValueError):
            return None
