"""Signatures: the vectors of RFC 8032 (section 7.1), and whatever was changed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.cost.ed25519 import is_signed, public_key, sign

VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("secret", "public", "message", "signature"), VECTORS)
def test_the_vectors_of_the_rfc_come_out(
    secret: str, public: str, message: str, signature: str
) -> None:
    key, text = bytes.fromhex(secret), bytes.fromhex(message)

    assert public_key(key).hex() == public
    assert sign(key, text).hex() == signature
    assert is_signed(bytes.fromhex(public), text, bytes.fromhex(signature))


@settings(max_examples=25, deadline=None)
@given(
    st.binary(min_size=32, max_size=32),
    st.binary(max_size=200),
    st.integers(0, 95),
    st.integers(1, 255),
)
def test_what_was_changed_is_not_signed(
    secret: bytes, message: bytes, place: int, change: int
) -> None:
    public, signature = public_key(secret), sign(secret, message)
    whole = bytearray(public + signature)
    whole[place] ^= change

    assert is_signed(public, message, signature)
    assert not is_signed(bytes(whole[:32]), message, bytes(whole[32:]))
    assert not is_signed(public, message + b"x", signature)
    assert not is_signed(public, b"x" + message, signature)


def test_a_signature_has_one_form_only() -> None:
    secret, order = b"s" * 32, 2**252 + 27742317777372353535851937790883648493
    public, signature = public_key(secret), sign(secret, b"m")
    more = int.from_bytes(signature[32:], "little") + order

    assert not is_signed(public, b"m", signature[:32] + more.to_bytes(32, "little"))


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_keys_and_signatures_have_their_length(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        sign(b"x" * size if size != 32 else b"", b"m")
    assert not is_signed(b"x" * size, b"m", b"y" * 64)
    assert size == 64 or not is_signed(public_key(b"s" * 32), b"m", b"y" * size)
