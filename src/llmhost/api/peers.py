"""Who is at the other end of a connection: the address that is counted, and whether it is a program of this machine.

Whoever says nothing of a proxy and comes from loopback or a unix socket is local. What comes by a proxy never is, or a
proxy beside the server would make strangers local: neither what a trusted proxy sends, nor what names other addresses,
nor what has been through a proxy that names none.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llmhost.tenants.strangers import Network, address_of, is_trusted, networks_of, parsed

UNIX = "unix"
"""The address of whoever comes by a unix socket."""
MOST_FORWARDED_BYTES = 512
"""Of `x-forwarded-for`, which is read from its end: its beginning is a stranger's to write."""
_NAMING = frozenset({b"x-forwarded-for", b"x-real-ip", b"forwarded"})
"""Headers in which proxies name whom they forward for."""
_SIGNS = _NAMING | {
    *(
        b"via",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-port",
        b"x-forwarded-server",
    ),
    *(b"x-forwarded", b"x-original-forwarded-for", b"x-envoy-external-address"),
    *(b"cf-connecting-ip", b"true-client-ip", b"x-client-ip", b"x-cluster-client-ip"),
}
"""Headers that proxies write, and programs that ask a server themselves do not."""
_FOR = re.compile(r'for="?([^;,"]+)', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Peer:
    address: str
    """Who is counted: the peer, or whom a trusted proxy names. Of IPv6 a subscriber's network."""
    is_local: bool
    is_proxy: bool
    """A trusted one: what it says of names and schemes is believed."""


class Peers:
    """One per host."""

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        """`trusted`: addresses and networks of proxies, and `unix` for those on a unix socket."""
        texts = tuple(trusted)
        networks = networks_of(text for text in texts if text != UNIX)
        self._look = _Look(networks, has_unix=UNIX in texts)
        self._known = lru_cache(4096)(self._look)

    @property
    def remembered(self) -> int:
        """Peers that are known without looking again."""
        return self._known.cache_info().currsize

    def of(self, scope: Any) -> Peer:
        named = [each for each in scope["headers"] if each[0] in _SIGNS]
        if not named:  # as nearly all
            return self._known(_peer_of(scope), ())
        # Strangers choose how long it is, and what is remembered is for ever new.
        is_long = sum(len(value) for _, value in named) > MOST_FORWARDED_BYTES
        look = self._look if is_long else self._known
        peer: Peer = look(_peer_of(scope), tuple(named))
        return peer


class _Look:
    def __init__(self, networks: tuple[Network, ...], *, has_unix: bool) -> None:
        self._networks = networks
        self._has_unix = has_unix

    def __call__(self, peer: str, named: tuple[tuple[bytes, bytes], ...]) -> Peer:
        is_proxy = self._has_unix if peer == UNIX else is_trusted(peer, self._networks)
        sent = [value for name, value in named if name == b"x-forwarded-for"]
        forwarded = b",".join(sent)[-MOST_FORWARDED_BYTES:].decode("latin-1") if sent else None
        return Peer(
            address=address_of(peer, forwarded, self._networks, is_trusted_peer=is_proxy),
            is_local=not is_proxy and _is_home(peer) and _is_from_home(named),
            is_proxy=is_proxy,
        )


def _peer_of(scope: Any) -> str:
    server, client = scope.get("server"), scope.get("client")
    if server is not None and server[1] is None:  # its address is a path
        return UNIX
    return str(client[0]) if client else "-"


def _is_home(address: str) -> bool:
    if address == UNIX:
        return True
    found = parsed(address.strip())
    return found is not None and found.is_loopback


def _is_from_home(signs: tuple[tuple[bytes, bytes], ...]) -> bool:
    """No proxy has had it, or one of this machine for a program of this machine."""
    addresses = list(_addresses(signs))
    return all(map(_is_home, addresses)) and (bool(addresses) or not signs)


def _addresses(named: tuple[tuple[bytes, bytes], ...]) -> Iterable[str]:
    """Everybody who is named by these headers. What names nobody, such as `unknown`, is no address either."""
    for name, raw in named:
        if name not in _NAMING:
            continue
        value = raw[-MOST_FORWARDED_BYTES:].decode("latin-1")
        yield from _FOR.findall(value) or [value] if name == b"forwarded" else value.split(",")
