"""What operators and admins change is written to the audit log, at one place for all routes: where it is said who asks.

Whoever passes the guard of admin routes with a method that changes something gets a row: who, which route, with what
body and with what result. So does a route that only reads, where it says `leaves_row=True`. The row
is on disk before the answer is sent. While no row can be written nothing is begun.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from llmhost.safety.audit import AuditLog
from llmhost.tenants.roles import Access
from llmhost.tenants.tokens import PREFIX

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
MOST_BYTES = 64 * 1024
"""Of a body or an answer that is looked at."""
MOST_CHARS = 200
MOST_ITEMS = 20
SECRET = frozenset({"secret", "token", "password"})
"""Fields that are never shown, should a body have them; nor is a key, wherever it is."""
_ACT = "llmhost.act"


class Audited:
    """An application of which all that is changed by admins is written down."""

    def __init__(self, app: ASGIApp, audit: AuditLog) -> None:
        self._app = app
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        act = Act(self._audit, scope)
        scope.setdefault("state", {})[_ACT] = act
        await self._app(scope, act.receiving(receive), act.sending(send))


def begin_act(scope: Any, access: Access, handler: BaseRouteHandler) -> None:
    """Called by the guard, once it is known who asks. Raises StorageFailed while nothing can be written down."""
    act: Act | None = scope.get("state", {}).get(_ACT)
    if act is not None:
        act.begin(access, handler)


class Act:
    """One call that may turn out to be an admin's."""

    def __init__(self, audit: AuditLog, scope: Any) -> None:
        self._audit = audit
        self._scope = scope
        self._access: Access | None = None
        self._action = ""
        self._shows_body = True
        self._body = bytearray()
        self._held: tuple[Message, int] | None = None

    def begin(self, access: Access, handler: BaseRouteHandler) -> None:
        if self._scope["method"] in SAFE_METHODS and not handler.opt.get("leaves_row"):
            return
        self._audit.check_writable()
        self._access = access
        self._action = handler.fn.__name__
        self._shows_body = handler.opt.get("shows_body", True)

    def receiving(self, receive: Receive) -> Receive:
        async def received() -> Any:
            message = await receive()
            if self._access is not None and message["type"] == "http.request":
                part = message.get("body", b"")
                self._body += part[: MOST_BYTES + 1 - len(self._body)]
            return message

        return received

    def sending(self, send: Send) -> Send:
        async def sent(message: Message) -> None:
            if self._access is None:
                await send(message)
            elif message["type"] == "http.response.start":
                self._held = message, message["status"]
            else:
                if self._held is not None:
                    (held, status), self._held = self._held, None
                    is_whole = not message.get("more_body", False)
                    answer = message.get("body", b"") if is_whole else b""
                    await self._write(self._access, status, answer)
                    await send(held)
                await send(message)

        return sent

    async def _write(self, access: Access, status: int, answer: Any) -> None:
        asked, told = _object(bytes(self._body)), _object(bytes(answer))
        detail = {
            "method": self._scope["method"],
            "status": status,
            "body": shown(asked) if self._shows_body and asked else None,
            "id": told.get("id") if status < 300 else None,
        }
        await self._audit.record_done(
            actor=access.who,
            action=self._action,
            target=self._scope["path"][: 4 * MOST_CHARS],
            org=access.org or self._org(asked, told),
            detail={name: value for name, value in detail.items() if value is not None},
        )

    def _org(self, asked: Mapping[str, Any], told: Mapping[str, Any]) -> str | None:
        """Whose admins may see what the operator did."""
        found = self._scope.get("path_params", {}).get("org") or told.get("org") or asked.get("org")
        return found[:MOST_CHARS] if isinstance(found, str) else None


def shown(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body's fields, without what is long, nested or secret: it says what was asked, not all of it."""
    return {
        name[:MOST_CHARS]: _brief(body[name])
        for name in list(body)[:MOST_ITEMS]
        if name not in SECRET
    }


def _brief(value: Any, *, is_inner: bool = False) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str) and PREFIX in value:
        return "a key"
    if isinstance(value, str):
        return value if len(value) <= MOST_CHARS else f"{len(value)} characters"
    if isinstance(value, list) and not is_inner:
        return [_brief(item, is_inner=True) for item in value[:MOST_ITEMS]]
    return f"{len(value)} items"


def _object(content: bytes) -> dict[str, Any]:
    if not content or len(content) > MOST_BYTES:
        return {}
    try:
        found = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
