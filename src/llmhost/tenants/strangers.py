"""Failed authentications of each address, so that keys can't be tried by the thousand.

An address that failed too often is refused before its key is looked at. A key that has worked from there goes on to
be looked at: a neighbour with a wrong key in a loop shuts nobody out who is at work already.
"""

import ipaddress
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from llmhost.core.units import show_duration
from llmhost.tenants.gcra import Bucket
from llmhost.tenants.refusals import LimitReached

KEPT_KEYS = 10_000
_IPV6_PREFIX = 64
"""What one subscriber has: as many addresses as he likes."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Strangers:
    """Counts failures by address. Used from one thread."""

    def __init__(self, per_minute: int) -> None:
        """Of `per_minute` failures all may come at once. 0 limits nothing."""
        self._per_minute = per_minute
        self._failures: OrderedDict[str, Bucket] = OrderedDict()
        self._worked: OrderedDict[tuple[str, int], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failures)

    def check(self, address: str, bearer: str | None, now_ns: int) -> None:
        """Raises LimitReached for an address that has failed too often."""
        bucket = self._failures.get(address)
        if bucket is None or not (wait_ns := bucket.wait_ns(1, now_ns)):
            return
        if bearer is not None and (address, hash(bearer)) in self._worked:
            return
        raise LimitReached(
            f"Too many requests from {address} had no valid API key: {self._per_minute} per minute are looked at."
            f" Try again in {show_duration(wait_ns)}.",
            dimension="ip",
            limit="failed_auth",
            retry_after_s=wait_ns / 10**9,
        )

    def failed(self, address: str, bearer: str | None, now_ns: int) -> bool:
        """Count one failure. True when it was the last one that is looked at for now."""
        if not self._per_minute:
            return False
        self._forget_idle(now_ns)
        self._worked.pop((address, hash(bearer)), None)  # revoked since
        bucket = self._failures.get(address)
        if bucket is None:
            bucket = self._failures[address] = Bucket(self._per_minute, self._per_minute)
        if bucket.wait_ns(1, now_ns):
            return False  # so many came at once that their keys were being looked at already
        bucket.take(1, now_ns)
        return bucket.remaining(now_ns) == 0

    def worked(self, address: str, bearer: str | None) -> None:
        """Remember a key that was right. Its text is not kept, only its hash, whose seed is this process's own."""
        if bearer is None or not self._per_minute:
            return
        self._worked[address, hash(bearer)] = None
        self._worked.move_to_end((address, hash(bearer)))
        if len(self._worked) > KEPT_KEYS:
            self._worked.popitem(last=False)

    def still_works(self, address: str, digest: int | None) -> bool:
        """Whether an address is let in with a key that was right, by its hash, or with none; remembers it if so."""
        if digest is None:
            return address not in self._failures
        mark = (address, digest)
        if mark not in self._worked:
            return not self._per_minute
        self._worked.move_to_end(mark)
        return True

    def _forget_idle(self, now_ns: int) -> None:
        for _ in range(min(2, len(self._failures))):
            address, bucket = self._failures.popitem(last=False)
            if not bucket.is_idle(now_ns):
                self._failures[address] = bucket


def networks_of(texts: Iterable[str]) -> tuple[Network, ...]:
    """`10.0.0.0/8`, or one address. Raises ValueError."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def address_of(
    peer: str | None,
    forwarded_for: str | None,
    trusted: Sequence[Network],
    *,
    is_trusted_peer: bool | None = None,
) -> str:
    """Who is counted for a call. What a proxy says is believed only from a trusted one, and read from its end: what
    stands before was written by whoever it forwards for. `is_trusted_peer` says so of a peer without an address."""
    address = parsed(peer or "")
    if is_trusted_peer is None:
        is_trusted_peer = address is not None and _is_in(address, trusted)
    if is_trusted_peer and forwarded_for is not None:
        address = _named_by(forwarded_for, trusted) or address
    if address is None:
        return peer or "-"
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
    return str(address)


def is_trusted(peer: str, trusted: Sequence[Network]) -> bool:
    """Whether an address is that of a trusted proxy."""
    address = parsed(peer)
    return address is not None and _is_in(address, trusted)


def _named_by(forwarded_for: str, trusted: Sequence[Network]) -> Address | None:
    found: Address | None = None
    for text in reversed(forwarded_for.split(",")):
        address = parsed(text.strip())
        if address is None:
            break
        found = address
        if not _is_in(address, trusted):
            break
    return found


def parsed(text: str) -> Address | None:
    """With a port or brackets too, as some proxies write them."""
    bare = text.partition("]")[0].removeprefix("[") if text.startswith("[") else text
    if bare.count(":") == 1:
        bare = bare.partition(":")[0]
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == each.version and address in each for each in networks)
