"""Who is local, and who is counted, by what a connection is and what its headers claim."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.api.peers import MOST_FORWARDED_BYTES, Peers

LOOPBACK = st.sampled_from(
    ["127.0.0.1", "127.8.8.8", "::1", "[::1]:80", "unix", "::ffff:127.0.0.1"]
)
ELSEWHERE = st.one_of(
    st.sampled_from(
        ["203.0.113.9", "10.0.0.1", "2001:db8::1", "unknown", "_hidden", "", "localhost"]
    ),
    st.text(
        st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=",;"), max_size=12
    ),
)
NAMING = st.sampled_from(["x-forwarded-for", "x-real-ip", "forwarded"])


def scope(peer: str, *headers: tuple[str, str]) -> dict[str, Any]:
    server = ("/run/llmhost.sock", None) if peer == "unix" else ("127.0.0.1", 8000)
    return {
        "client": None if peer == "unix" else (peer, 5000),
        "server": server,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
    }


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "unix"])
def test_whoever_comes_from_this_machine_and_names_nobody_is_local(peer: str) -> None:
    found = Peers().of(scope(peer, ("user-agent", "curl")))

    assert (found.is_local, found.is_proxy) == (True, False)


@pytest.mark.parametrize("peer", ["10.0.0.1", "203.0.113.9", "2001:db8::1", "-"])
def test_whoever_comes_from_elsewhere_is_not(peer: str) -> None:
    assert not Peers().of(scope(peer)).is_local


@given(peer=LOOPBACK, name=NAMING, home=st.lists(LOOPBACK, max_size=2), other=ELSEWHERE)
def test_a_call_that_names_anybody_else_is_not_local(
    peer: str, name: str, home: list[str], other: str
) -> None:
    named = [*home, other]
    value = ";".join(f"for={each}" for each in named) if name == "forwarded" else ",".join(named)
    is_home = other in ("127.0.0.1", "::1", "unix") or other.startswith("127.")

    assert is_home or not Peers().of(scope(peer, (name, value))).is_local


@given(peer=LOOPBACK, headers=st.lists(st.tuples(NAMING, LOOPBACK), max_size=3))
def test_a_trusted_proxy_is_never_local(peer: str, headers: list[tuple[str, str]]) -> None:
    peers = Peers(["127.0.0.0/8", "::1", "unix"])

    found = peers.of(scope(peer, *headers))

    assert (found.is_local, found.is_proxy) == (False, peer != "[::1]:80" or found.is_proxy)


@pytest.mark.parametrize(
    ("peer", "trusted", "address"),
    [
        ("unix", (), "unix"),
        ("unix", ("unix",), "203.0.113.9"),
        ("unix", ("10.0.0.0/8",), "unix"),
        ("10.0.0.1", ("10.0.0.0/8",), "203.0.113.9"),
        ("10.0.0.1", ("unix",), "10.0.0.1"),
        ("10.0.0.1", (), "10.0.0.1"),
    ],
)
def test_whom_a_proxy_names_is_counted_if_the_proxy_is_trusted(
    peer: str, trusted: tuple[str, ...], address: str
) -> None:
    sent = ("x-forwarded-for", "198.51.100.1, 203.0.113.9")

    assert Peers(trusted).of(scope(peer, sent)).address == address


def test_a_proxy_on_the_socket_that_names_nobody_is_counted_itself() -> None:
    assert Peers(["unix"]).of(scope("unix")).address == "unix"


def test_a_page_can_not_make_itself_local_behind_a_trusted_proxy_on_loopback() -> None:
    peers = Peers(["127.0.0.1"])

    assert not peers.of(scope("127.0.0.1", ("x-forwarded-for", "127.0.0.1"))).is_local


def test_what_strangers_write_is_not_remembered_in_any_length() -> None:
    peers, long = Peers(), "x" * MOST_FORWARDED_BYTES
    for place in range(3):
        assert not peers.of(scope("203.0.113.9", ("x-forwarded-for", f"{long}{place}"))).is_local

    assert peers.remembered == 0


@pytest.mark.parametrize(
    "sign",
    [("via", "1.1 box"), ("x-forwarded-host", "models.example"), ("cf-connecting-ip", "::1")],
)
def test_what_a_proxy_brings_and_names_nobody_for_is_not_local(sign: tuple[str, str]) -> None:
    assert not Peers().of(scope("127.0.0.1", sign)).is_local


def test_a_proxy_of_this_machine_may_bring_programs_of_this_machine() -> None:
    sent = (("x-forwarded-host", "localhost:5173"), ("x-forwarded-for", "::1"))

    assert Peers().of(scope("127.0.0.1", *sent)).is_local
