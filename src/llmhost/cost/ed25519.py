"""Ed25519 signatures (RFC 8032), by the library cryptography, which is only imported by who signs or checks.

Deliberately ignorant of what is signed, and of where keys are kept.
"""

KEY_BYTES = 32


def public_key(secret: bytes) -> bytes:
    """The 32 bytes that others check signatures with. Raises ValueError for a secret of another length."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    _check(secret)
    return Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def sign(secret: bytes, message: bytes) -> bytes:
    """64 bytes, always the same of one secret and one message. Raises ValueError for a secret of another length."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    _check(secret)
    return Ed25519PrivateKey.from_private_bytes(secret).sign(message)


def is_signed(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the owner of the public key's secret signed the message."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (
        InvalidSignature,
        ValueError,
    ):  # the latter: a key or a signature of another length, or no point
        return False
    return True


def _check(secret: bytes) -> None:
    if len(secret) != KEY_BYTES:
        raise ValueError(f"a secret has {KEY_BYTES} bytes, and not {len(secret)}")
