"""What stands around the whole app: the Host names it answers to, the pages that may call /v1, who is local, what every
answer's headers say, and HEAD.

Pure ASGI, because admin routes must answer no CORS at all, and because a hot route should not pay for a framework's
middleware. A server that listens on loopback only answers to loopback names: a page that had its own name resolve to
127.0.0.1 gets nothing, and neither does a page of an origin that is not allowed. A trusted proxy may be asked by any
name and for any page, since what comes by it needs a key.
"""

import ipaddress
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from llmhost.api import bill_facts, cache_headers, limit_headers, safety_headers
from llmhost.api.dialect import OLLAMA_PATH, dialect_of
from llmhost.api.door import add_by_sending, client_id, header, is_small, send_last, send_whole
from llmhost.api.peers import Peer, Peers
from llmhost.config.schema.server import ServerSettings
from llmhost.core.errors import Forbidden, InvalidValue, LlmhostError
from llmhost.core.ids import new_request_id
from llmhost.pipeline.authenticate import is_local

HEADS_OF_ITS_OWN = "/api/"
"""Ollama's API, in which a HEAD may mean something where there is no GET."""
KEY_HEADERS = {b"authorization": "Authorization", b"x-api-key": "x-api-key"}
CALLED_BY_PAGES = ("/v1", OLLAMA_PATH)
LONGEST_NAME = 300
"""Of a Host header, which callers make up and which is remembered."""
_LOOPBACK_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
_EXPOSED = ", ".join(
    (
        "x-request-id",
        "request-id",
        "x-client-request-id",
        "openai-processing-ms",
        "idempotent-replayed",
        "x-llmhost-original-request-id",
        "retry-after",
        "retry-after-ms",
        "x-should-retry",
        *limit_headers.NAMES,
        *limit_headers.ANTHROPIC_NAMES,
        "anthropic-organization-id",
        *bill_facts.NAMES,
        *safety_headers.NAMES,
        *cache_headers.NAMES,
    )
).encode()


@lru_cache(256)
def is_loopback(host: str) -> bool:
    """Whether an address or name means this machine alone."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def serves_this_machine(settings: ServerSettings) -> bool:
    """Whether nothing but this machine can connect: on a loopback address, or on a unix socket."""
    return settings.unix_socket is not None or is_loopback(settings.host)


class Edge:
    """Checks Host, answers preflights, and adds CORS headers for allowed origins; loopback pages always may."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        origins: Sequence[str],
        loopback_only: bool,
        peers: Peers | None = None,
        root_path: str = "",
    ) -> None:
        """`root_path` is where a proxy has put the server: paths may begin with it, or not."""
        self._app = app
        self._origins = frozenset(origins)
        self._loopback_only = loopback_only
        self._peers = peers or Peers()
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        peer = self._peers.of(scope)
        is_local.set(peer.is_local)
        self._place(scope, peer)
        refusal = _doubled(scope) or (self._refusal(scope, peer) if self._loopback_only else None)
        send = _named(scope, send, time.perf_counter())
        if refusal is not None:
            await _refuse(scope, receive, send, refusal)
        elif scope["method"] == "HEAD" and not scope["path"].startswith(HEADS_OF_ITS_OWN):
            await self._with_cors(_as_get(scope), receive, _bodiless(send))
        else:
            await self._with_cors(scope, receive, send)

    def _place(self, scope: Any, peer: Peer) -> None:
        """As the server would be asked without the proxy before it."""
        root, path = self._root_path, scope["path"]
        if root and path.startswith(root) and path[len(root) :][:1] in ("", "/"):
            scope["path"] = path[len(root) :] or "/"
            scope["raw_path"] = scope["raw_path"].removeprefix(root.encode()) or b"/"
        if peer.is_proxy and header(scope, b"x-forwarded-proto") in ("http", "https"):
            scope["scheme"] = header(scope, b"x-forwarded-proto")

    def _refusal(self, scope: Any, peer: Peer) -> Forbidden | None:
        """What a server that is for this machine alone says to names and pages that are not its own."""
        if peer.is_proxy:
            return None
        if not is_loopback(_host_name(scope)):
            return Forbidden(
                f"This server answers to loopback names only, and was asked as {_host_name(scope)!r}."
                " To serve other machines, start it with --host and make a key; a proxy before it is named in"
                " trusted_proxies of [limits]."
            )
        if not self._is_at_home(origin := header(scope, b"origin")):
            return Forbidden(
                f"This server answers to pages of this machine only, and was asked by {origin!r}."
                " To let that page in, add it to cors_origins in [server]."
            )
        return None

    def _is_at_home(self, origin: str | None) -> bool:
        """Pages elsewhere can't read answers, but their requests would run all the same: some need no preflight."""
        return origin is None or self._allows(origin)

    async def _with_cors(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        origin = header(scope, b"origin")
        if (
            origin is None
            or not scope["path"].startswith(CALLED_BY_PAGES)
            or not self._allows(origin)
        ):
            await self._app(scope, receive, send)
            return
        headers = [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"origin"),
        ]
        if scope["method"] == "OPTIONS":
            await self._preflight(scope, send, headers)
            return

        add_by_sending(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _allows(self, origin: str) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        return _LOOPBACK_ORIGIN.fullmatch(origin) is not None

    async def _preflight(
        self, scope: Scope, send: Send, headers: list[tuple[bytes, bytes]]
    ) -> None:
        asked = header(scope, b"access-control-request-headers") or "authorization, content-type"
        headers += [
            (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE, OPTIONS"),
            (b"access-control-allow-headers", asked.encode("latin-1")),
            (b"access-control-max-age", b"600"),
        ]
        if header(scope, b"access-control-request-private-network") == "true":
            headers.append((b"access-control-allow-private-network", b"true"))
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _doubled(scope: HTTPScope) -> InvalidValue | None:
    """Who sends two keys would be one caller to us, and perhaps another to a proxy or a plugin."""
    names = [name for name, _ in scope["headers"] if name in KEY_HEADERS]
    for name in set(names) if len(names) > 1 else ():
        if names.count(name) > 1:
            shown = KEY_HEADERS[name]
            return InvalidValue(
                f"The header {shown} came more than once. Send it once.", param=shown
            )
    return None


async def _refuse(scope: HTTPScope, receive: Receive, send: Send, refusal: LlmhostError) -> None:
    body = dialect_of(scope).error_body(refusal)
    if is_small(scope):
        await send_whole(send, refusal.status, body, {})
    else:
        await send_last(send, receive, refusal.status, body, {})


def _named(scope: HTTPScope, send: Send, began_s: float) -> Send:
    """A `send` that gives every response an id, ours, repeats the client's own, and says how long it took."""

    async def send_named(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message["headers"])
            present = {name for name, _ in headers}
            if b"x-request-id" not in present:
                name = new_request_id().encode()
                headers.append((b"x-request-id", name))
                if (other := dialect_of(scope).id_header) is not None:
                    headers.append((other.encode(), name))
            if b"x-client-request-id" not in present and (theirs := client_id(scope)):
                headers.append((b"x-client-request-id", theirs.encode()))
            if b"openai-processing-ms" not in present:
                took_ms = int((time.perf_counter() - began_s) * 1000)
                headers.append((b"openai-processing-ms", b"%d" % took_ms))
            message["headers"] = headers
        await send(message)

    return send_named


def _as_get(scope: HTTPScope) -> HTTPScope:
    """The call whose headers a HEAD asks for."""
    asked = scope.copy()
    asked["method"] = "GET"
    add_by_sending(asked)
    return asked


def _bodiless(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message["body"] = b""
        await send(message)

    return send_head


def _host_name(scope: Any) -> str:
    return _name_of((header(scope, b"host") or "")[:LONGEST_NAME])


@lru_cache(256)
def _name_of(host: str) -> str:
    name = host.rsplit(":", 1)[0] if re.search(r":\d+$", host) else host
    return name.strip("[]")
