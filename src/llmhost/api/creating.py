"""`Idempotency-Key` of calls that make something which lasts, such as a file: made again, they make nothing.

Unlike answers, which are kept as they were (`idempotency`), what was made is told as it is now.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from litestar import Request, Response
from litestar.types import HTTPScope

from llmhost.api.idempotency import HEADER, ORIGINAL, REPLAYED, call_of
from llmhost.core.caller import Caller
from llmhost.core.errors import IdempotencyKeyReused
from llmhost.core.ids import new_request_id
from llmhost.observe.logs import log_event
from llmhost.storage.keyed_calls import AlreadyMade, Call, KeyedCalls, Made, Note

log = logging.getLogger("llmhost.idempotency")

T = TypeVar("T")
AnyRequest = Request[Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Sent:
    """A call that makes something: who made it, where, and with which key."""

    caller: Caller
    scope: HTTPScope
    request_id: str

    @property
    def has_key(self) -> bool:
        return any(name == HEADER.encode() for name, _ in self.scope["headers"])

    def call(self, body_hash: bytes) -> Call | None:
        """None without a key. Raises InvalidValue for one that can't be one."""
        if not self.has_key:
            return None
        return call_of(self.scope, self.caller, body_hash, self.request_id)


def sent(request: AnyRequest, caller: Caller) -> Sent:
    return Sent(caller, request.scope, new_request_id())


@dataclass(frozen=True, slots=True)
class Creation:
    """What calls make, once each."""

    calls: KeyedCalls
    count: Callable[[str], None]
    """Hears of each call that was made again."""

    async def once(
        self,
        call: Call | None,
        make: Callable[[Note | None], Awaitable[T]],
        find: Callable[[str], Awaitable[T]],
    ) -> tuple[T, Made | None]:
        """What `make` makes; or what `find` finds of the call that came first, and what is known of that.

        Raises what those do, and IdempotencyKeyReused for another body.
        """
        if call is None:
            return await make(None), None
        made = await self.calls.find(call.name)
        if made is None:
            try:
                return await make(self.calls.note(call)), None
            except AlreadyMade as first:  # at the same time
                made = first.made
        if made.body_hash != call.body_hash:
            raise IdempotencyKeyReused()
        await self.calls.force()  # the first may still be at it, and undo it all if it can't
        self.count("replayed")
        log_event(
            log,
            "request.repeated",
            request=call.request_id,
            original=made.request_id,
            how="replayed",
            object=made.object_id,
        )
        return await find(made.object_id), made


def told(body: msgspec.Struct, sent: Sent, made: Made | None) -> Response[Any]:
    """The answer to a call that makes something."""
    return Response(body, status_code=200, headers=told_headers(sent, made))


def told_headers(sent: Sent, made: Made | None) -> dict[str, str]:
    """What its headers say: its own id, and whose answer it is where that is another's."""
    headers = {"x-request-id": sent.request_id}
    if made is not None:
        headers |= {REPLAYED: "true", ORIGINAL: made.request_id}
    return headers
