"""What callers carry for us and can't read: thoughts and summaries, encrypted with a key of this data dir.

AES-256-GCM with a random nonce. Whoever it belongs to is sealed in with it, so that nobody can give us another's.
"""

import base64
import binascii
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from llmhost.core.errors import InvalidEncryptedContent

PREFIX = "lhs1_"
NONCE_BYTES = 12


class Seal:
    """Seals for one scope of callers."""

    __slots__ = ("_cipher", "_scope")

    def __init__(self, secret: bytes, scope: str) -> None:
        """`secret` is 32 bytes."""
        self._cipher = AESGCM(secret)
        self._scope = scope.encode()

    def close(self, text: str) -> str:
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, text.encode(), self._scope)
        return PREFIX + base64.urlsafe_b64encode(nonce + sealed).decode()

    def open(self, sealed: str, param: str) -> str:
        """The text. Raises InvalidEncryptedContent for what this server did not seal, or sealed for somebody else."""
        try:
            if not sealed.startswith(PREFIX):
                raise ValueError("another server's")
            raw = base64.b64decode(sealed[len(PREFIX) :], altchars=b"-_", validate=True)
            nonce, rest = raw[:NONCE_BYTES], raw[NONCE_BYTES:]
            return self._cipher.decrypt(nonce, rest, self._scope).decode()
        except (ValueError, binascii.Error, InvalidTag):
            raise InvalidEncryptedContent(
                "This encrypted content was not made by this server for this key's holder. Leave the item out, or send"
                " it as text.",
                param=param,
            ) from None
