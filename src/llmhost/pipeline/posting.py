"""One signed POST to an address that an operator named: no redirects, no private addresses unless they are wanted.

Where the name leads is looked up once, and what was looked at is what is connected to: a name that answers otherwise a
moment later leads nowhere else. It reads the status of the answer and nothing more.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import re
import socket
import ssl
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit

USER_AGENT = "llmhost-webhook"
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""An address of IPv4 is in its last 32 bits."""
_GIVEN_OUT = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that belongs to anybody on the Internet."""
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r\n]")


class NotPosted(Exception):
    """Why a try has failed."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where posts go."""

    url: str
    may_be_private: bool = False
    timeout_s: float = 10.0


async def post(target: Target, body: bytes, headers: dict[str, str]) -> None:
    """Comes back once the answer is a 2xx. Raises NotPosted."""
    try:
        async with asyncio.timeout(target.timeout_s):
            status = await _post(target, body, headers)
    except NotPosted:
        raise
    except TimeoutError:
        raise NotPosted(f"no answer within {target.timeout_s:g} s") from None
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        raise NotPosted(f"{type(error).__name__}: {error}") from error
    if not 200 <= status < 300:
        raise NotPosted(f"the answer was {status}")


def signed_headers(secret: bytes, event_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """As the Standard Webhooks have it: an HMAC over id, time and body."""
    said = f"{event_id}.{at_s}.".encode() + body
    signature = base64.b64encode(hmac.digest(secret, said, hashlib.sha256)).decode()
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": f"v1,{signature}",
    }


def shown_secret(secret: bytes) -> str:
    """As those who check signatures are given it."""
    return f"whsec_{base64.b64encode(secret).decode()}"


async def _post(target: Target, body: bytes, headers: dict[str, str]) -> int:
    parts = urlsplit(target.url)
    is_tls, host = parts.scheme == "https", parts.hostname or ""
    port = parts.port or (443 if is_tls else 80)
    address = await _address(host, port, may_be_private=target.may_be_private)
    reader, writer = await asyncio.open_connection(
        address,
        port,
        ssl=await asyncio.to_thread(_trust) if is_tls else None,
        server_hostname=host if is_tls else None,
    )
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        said = {
            "host": parts.netloc,
            "user-agent": USER_AGENT,
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            **headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in said.items())
        writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("ascii") + body)
        await writer.drain()
        line = await reader.readline()
    finally:
        writer.close()
    found = _STATUS.match(line)
    if found is None:
        raise NotPosted("the answer was no HTTP")
    return int(found[1])


@cache
def _trust() -> ssl.SSLContext:
    """Whom this machine trusts. Reading that takes a tenth of a second, so it is done once, and aside."""
    return ssl.create_default_context()


async def _address(host: str, port: int, *, may_be_private: bool) -> str:
    """The first that the name has. Raises NotPosted where any of them is not to be posted to."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(one[4][0]) for one in found]
    for address in addresses:
        if not may_be_private and not is_public(address):
            raise NotPosted(
                f"{host} is {address}, which is no address of the Internet; webhook_private allows it"
            )
    if not addresses:
        raise NotPosted(f"{host} has no address")
    return addresses[0]


def is_public(address: str) -> bool:
    """Not of this machine, its network, a cloud's metadata, or the like."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        within = ipaddress.IPv4Address(int(found) % 2**32) if found in _NAT64 else None
        found = found.ipv4_mapped or found.sixtofour or within or found
    is_given_out = found.version == 4 or found in _GIVEN_OUT
    return is_given_out and found.is_global and not found.is_multicast
