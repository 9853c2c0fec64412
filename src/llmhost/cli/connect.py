"""How a node is reached: over TCP, TLS or its unix socket. Imports httpx, which takes a tenth of a second."""

import ssl
from dataclasses import dataclass
from typing import Any

import httpx

from llmhost.cli.node import NoNode, is_loopback, socket_path

HOST = "http://localhost"
"""What is asked for on a unix socket, whose address is no URL."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What httpx must know of a node's address."""

    url: str
    uds: str | None
    verify: ssl.SSLContext | bool
    trust_env: bool
    """A proxy for the outside must not be asked for this very machine."""

    def client(self, transport: httpx.BaseTransport | None, **options: Any) -> httpx.Client:
        if transport is None and self.uds is not None:
            transport = httpx.HTTPTransport(uds=self.uds)
        return httpx.Client(transport=transport, **self._options(), **options)

    def async_client(self, limits: httpx.Limits, **options: Any) -> httpx.AsyncClient:
        uds = None if self.uds is None else httpx.AsyncHTTPTransport(uds=self.uds, limits=limits)
        return httpx.AsyncClient(transport=uds, limits=limits, **self._options(), **options)

    def _options(self) -> dict[str, Any]:
        return {"base_url": self.url, "verify": self.verify, "trust_env": self.trust_env}


def reach(url: str, tls_cert: str | None = None) -> Reach:
    """`tls_cert` is a file that this user's own node has named: with it nobody else is taken for that node, whatever
    name the certificate is for. Raises NoNode when it can't be read."""
    if (uds := socket_path(url)) is not None:
        return Reach(HOST, uds, verify=False, trust_env=False)
    # Reading the CA bundle takes longer than most answers; plain HTTP has no use for it.
    verify = _pinned(tls_cert) if tls_cert is not None else url.startswith("https:")
    return Reach(url, None, verify=verify, trust_env=not is_loopback(url))


def _pinned(tls_cert: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the node's own certificate is enough
    try:
        context.load_verify_locations(tls_cert)
    except (OSError, ssl.SSLError) as error:
        raise NoNode(f"{tls_cert}, the node's certificate, can't be read: {error}.") from None
    return context
