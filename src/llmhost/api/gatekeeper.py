"""Stands before every route and counts, for each address, the calls that had no valid key.

A route that has found a valid key says so with `vouch`; an answer of 401 says the opposite. Routes that ask nobody for
a key are open to all, or a health check would be refused with its neighbours.
"""

import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from llmhost.api.dialect import dialect_of
from llmhost.api.door import bearer, is_small, send_last, send_whole
from llmhost.api.errors import error_headers
from llmhost.api.peers import Peers
from llmhost.core.caller import Caller
from llmhost.core.ports import Clock
from llmhost.observe.limits import LimitMetrics
from llmhost.observe.logs import log_event
from llmhost.tenants.refusals import LimitReached
from llmhost.tenants.strangers import Strangers

log = logging.getLogger("llmhost.limits")

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})
Identify = Callable[[str | None, Mapping[str, str]], Awaitable[Caller]]
"""(bearer, headers) -> who that is. Raises Unauthenticated."""
_VOUCHED = "llmhost.vouched"
Mark = tuple[str, int | None]
"""An address, and the hash of a key, whose seed is this process's own."""


class Gatekeeper:
    """One per host; `guard` puts it before an application."""

    def __init__(
        self,
        strangers: Strangers,
        peers: Peers,
        metrics: LimitMetrics,
        clock: Clock,
        admin_token: str,
    ) -> None:
        """Whoever has the admin token is never kept out."""
        self._strangers = strangers
        self.peers = peers
        self._metrics = metrics
        self._clock = clock
        self._admin_token = admin_token.encode()

    def guard(self, app: ASGIApp) -> ASGIApp:
        """`app`, for those who may call it."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != ScopeType.HTTP or scope["path"] in OPEN_PATHS:
                await app(scope, receive, send)
                return
            address = self.peers.of(scope).address
            try:
                self._check(scope, address)
            except LimitReached as refusal:
                self._metrics.refused("ip", refusal.limit, refusal.retry_after_s, address=address)
                await _refuse(scope, receive, send, refusal)
                return
            _state(scope)[_VOUCHED] = lambda secret: self._strangers.worked(address, secret)
            await app(scope, receive, self._watched(scope, send, address))

        return guarded

    def mark_of(self, scope: HTTPScope) -> Mark:
        """Whose call it is that had a valid key: by that `still_lets_in` knows the next one."""
        secret = bearer(scope)
        return self.peers.of(scope).address, None if secret is None else hash(secret)

    def still_lets_in(self, mark: Mark) -> bool:
        """Whether a call of the same address and key is let in, and vouched for, without looking again."""
        return self._strangers.still_works(*mark)

    def _check(self, scope: HTTPScope, address: str) -> None:
        if not len(self._strangers):
            return
        secret = bearer(scope)
        if secret is None or not hmac.compare_digest(secret.encode(), self._admin_token):
            self._strangers.check(address, secret, self._clock.monotonic_ns())

    def _watched(self, scope: HTTPScope, send: Send, address: str) -> Send:
        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 401:
                self._failed(scope, address)
            await send(message)

        return watched

    def _failed(self, scope: HTTPScope, address: str) -> None:
        if self._strangers.failed(address, bearer(scope), self._clock.monotonic_ns()):
            log_event(log, "address.blocked", level=logging.WARNING, address=address)


def vouch(scope: Any) -> None:
    """Whoever makes this call has a valid key."""
    note = _state(scope).get(_VOUCHED)
    if note is not None:
        note(bearer(scope))


def _state(scope: Any) -> dict[str, Any]:
    state: dict[str, Any] = scope.setdefault("state", {})
    return state


async def _refuse(scope: HTTPScope, receive: Receive, send: Send, refusal: LimitReached) -> None:
    body, headers = dialect_of(scope).error_body(refusal), error_headers(refusal)
    if is_small(scope):
        await send_whole(send, refusal.status, body, headers)
    else:
        await send_last(send, receive, refusal.status, body, headers)
