"""HMACs of keys are those of the standard library, whatever the key and the message."""

import hmac

from hypothesis import given
from hypothesis import strategies as st

from llmhost.tenants.digests import Hmac


@given(st.binary(max_size=150), st.lists(st.binary(max_size=300), max_size=4))
def test_one_key_gives_the_standard_hmac_of_each_message(key: bytes, messages: list[bytes]) -> None:
    ours = Hmac(key)
    assert [ours(message) for message in messages] == [
        hmac.digest(key, message, "sha256") for message in messages
    ]
