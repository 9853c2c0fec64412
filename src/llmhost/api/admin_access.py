"""Who gets through to which admin route: the admin token to all, a key to those that name a right of its role.

A route says `needs=Right...`; one that says nothing is the operator's alone.
"""

import hmac
from collections.abc import Callable
from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard

from llmhost.api.audited import begin_act
from llmhost.api.door import bearer
from llmhost.api.gatekeeper import vouch
from llmhost.core.errors import Unauthenticated
from llmhost.tenants.roles import OPERATOR, Access, refusal
from llmhost.tenants.tokens import PREFIX

Visitor = Request[Access, Any, Any]
"""A request whose `user` is what the guard found."""


def guard_by(token: str, find: Callable[[str], Access]) -> Guard:
    """Lets in whoever holds the admin token, and keys as far as their roles go: `find` says who holds one."""

    def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        sent = bearer(connection.scope) or ""
        if hmac.compare_digest(sent.encode(), token.encode()):
            begin_act(connection.scope, OPERATOR, handler)
            connection.scope["user"] = OPERATOR
            return
        if not sent.startswith(PREFIX):
            raise Unauthenticated(
                "Admin routes need the admin token, which is in server.json in the data directory,"
                " or an API key whose role allows it."
            )
        access = find(sent)
        vouch(connection.scope)
        begin_act(connection.scope, access, handler)  # what is refused is written down, too
        needs = handler.opt.get("needs")
        if access.role is not None and (needs is None or not access.may(needs)):
            raise refusal(access.role, needs)
        connection.scope["user"] = access

    return guard
