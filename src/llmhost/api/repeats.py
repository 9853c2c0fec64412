"""Requests that come again, and are answered from the cache, or run, past all routes.

What a request is made of is one hash, keyed by this process: its connection's address and its bytes, where these came
at once and alone (`Shortcut`); and else, as the outermost of the application, path, headers and body. It finds what
`pipeline/short_way.py` remembers and the answer's bytes, in which a new id and a new time are put; or what
`pipeline/short_run.py` remembers. Whatever else would be answered takes its usual way, and is learnt from there: at
once if it had a kept answer, and else when it came for the second time. Of a request that runs all is learnt, too, that
does not rest on what it says: the next of its mould (`api/moulds.py`) run by the same way.
"""

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from http import HTTPStatus
from typing import Any

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from llmhost.api import moulds
from llmhost.api.bill_facts import bill_lines
from llmhost.api.cache_headers import cache_headers
from llmhost.api.door import (
    JSON,
    Begun,
    Came,
    Headers,
    Leave,
    Line,
    Lines,
    Outflow,
    Tell,
    Told,
    header,
    line_of,
    send_whole,
)
from llmhost.api.frames import answer_id
from llmhost.api.gatekeeper import Gatekeeper, Mark
from llmhost.api.limit_headers import limit_lines
from llmhost.api.moulded_streams import MouldedStreams
from llmhost.api.moulds import (
    Cast,
    Mould,
    Moulds,
    Noted,
    cast_of,
    cast_of_parts,
    mould_of,
    note,
    noted,
)
from llmhost.api.repeated_run import CLIENT_ID, RepeatedRun, body_of, client_line, names
from llmhost.api.report import report_of
from llmhost.api.visit import Visit
from llmhost.core.ids import new_request_id
from llmhost.core.request import Kind
from llmhost.pipeline.asked import Ran
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.short_run import ShortRuns
from llmhost.pipeline.short_way import Known, ShortWay

log = logging.getLogger("llmhost.api")

CHATS = "/v1/chat/completions"
PATHS = frozenset({CHATS, "/v1/completions"})
LINES = tuple(f"POST {path} HTTP/1.1\r\n".encode() for path in PATHS)
LARGEST_BYTES = 32 * 1024
"""Of a body, or of all that came at once: hashing more would cost those who never come again too much."""
MOST_SEEN = 4_096
"""Requests that ran once."""
MOST_BYTES = 32 * 2**20
"""Of all that is remembered, about."""
ENTRY_BYTES = 6_000
"""What Python has of one, beside its texts."""
_encode = msgspec.msgpack.Encoder().encode
Parts = tuple[bytes, bytes, bytes]
"""Of an answer's body: up to the digits of its id, up to its time, and the rest."""


@dataclass(slots=True)
class _Repeat:
    known: Known
    mark: Mark
    """The address and the key, as the gatekeeper knows them."""
    client_id: str | None
    head: bytes
    """Of the answer's body, up to the digits of its id; then up to its time; and what is behind that."""
    middle: bytes
    tail: bytes
    size_bytes: int


class Repeats:
    """One per host. `before` puts it before an application, and a route says what it has answered."""

    def __init__(
        self,
        short_way: ShortWay,
        short_runs: ShortRuns,
        gatekeeper: Gatekeeper,
        outflow: Outflow | None,
        max_body_bytes: int,
    ) -> None:
        self._short_way = short_way
        self._short_runs = short_runs
        self.streams = MouldedStreams(short_runs)
        self._gatekeeper = gatekeeper
        self._outflow = outflow
        self._most_bytes = min(moulds.LARGEST_BYTES, max_body_bytes)
        """Of a body that is cast: another one of its mould may be longer than the server takes."""
        self._hash = blake2b(key=os.urandom(32), digest_size=16)
        self._kept: OrderedDict[bytes, _Repeat | RepeatedRun] = OrderedDict()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._moulds: Moulds[Mould] = Moulds()
        self._missed: tuple[bytes, Cast | None] = (b"", None)
        """What was looked for last, and not found."""
        self._generation = short_way.generation
        self._defaults: Headers | None = None
        self._begin = b""
        """Of each answer that is told in bytes: as far as it is the same while a server's own headers are."""
        self.is_on = True
        self.bytes = 0
        self.answered = 0
        """Requests that took the short way to a kept answer."""
        self._untold: list[tuple[RepeatedRun, str, str, float, Tell, Ran]] = []

    @property
    def ran(self) -> int:
        """Requests that came again word for word and ran by the short way, or were refused by it."""
        return self._short_runs.ran

    @property
    def ran_alike(self) -> int:
        """The same of those that said something else than one before."""
        return self._short_runs.ran_alike

    def __len__(self) -> int:
        return len(self._kept)

    def before(self, app: ASGIApp) -> ASGIApp:
        async def shortened(scope: Scope, receive: Receive, send: Send) -> None:
            if (
                self.is_on
                and scope["type"] == ScopeType.HTTP
                and scope["path"] in PATHS
                and await self._answers(scope, send)
            ):
                return
            await app(scope, receive, send)

        return shortened

    async def _answers(self, scope: HTTPScope, send: Send) -> bool:
        began_s = time.perf_counter()
        line = line_of(scope)
        if noted(scope) is not None:
            return False  # its connection has looked
        raw = None if line is None else line.peek_body()
        if line is None or raw is None or len(raw) > LARGEST_BYTES:
            return False
        around = _around(scope)
        key = self._key(around, raw)
        known = self._kept.get(key)
        told: Told | None = None
        cast: Cast | None = None
        if isinstance(known, RepeatedRun):
            told = await self._told(partial(self._runs, key, known), line)
        elif known is not None:
            if (found := self._found(key, known)) is not None:
                told = self._said(*found, began_s)
        elif (
            cast := cast_of_parts(self._hash, scope, around[1:], raw, self._most_bytes)
        ) is not None:
            told = await self._told(partial(self._runs_alike, key, cast), line)
        if told is not None:
            await send_whole(send, told[0], told[2], told[1], JSON, line)
            return True
        state: dict[str, Any] = scope.setdefault("state", {})
        self._note(state, key, cast)
        return False

    async def _told(self, runs: Callable[[Tell], Leave | None], line: Line) -> Told | None:
        """The answer of one that runs, once it has ended."""
        telling: asyncio.Future[Told | None] = asyncio.get_running_loop().create_future()
        running = runs(lambda told: _resolve(telling, told))
        if running is None:
            return None
        try:
            if not line.on_gone(running):
                running()
            return await telling
        finally:
            line.on_gone(None)
            running()

    def begun(self, client: str | None, *, is_unix: bool) -> Begun:
        begun = self._hash.copy()
        begun.update(_encode((client, is_unix)))
        return begun

    def key(self, begun: Begun, data: bytes) -> bytes | None:
        if not self.is_on or len(data) > LARGEST_BYTES or not data.startswith(LINES):
            return None
        made = begun.copy()
        made.update(data)
        return made.digest()

    def answer_of(
        self, key: bytes, came: Came, defaults: Headers, tell: Tell
    ) -> bytes | Leave | None:
        known = self._kept.get(key)
        if isinstance(known, RepeatedRun):
            return self._runs(key, known, tell)
        if known is None:
            self._missed = key, cast = key, cast_of(*came, self._most_bytes)
            return None if cast is None else self._runs_alike(key, cast, tell)
        began_s = time.perf_counter()
        found = self._found(key, known)
        return None if found is None else self.bytes_of(self._said(*found, began_s), defaults)

    def bytes_of(self, told: Told, defaults: Headers) -> bytes:
        status, headers, body = told
        if defaults is not self._defaults:
            self._defaults = defaults
            first = [b"%b: %b\r\n" % each for each in defaults]
            first.append(b"content-type: application/json\r\ncontent-length: ")
            self._begin = b"".join(first)
        return b"%b%b%d\r\n%b\r\n%b" % (
            _LINES[status],
            self._begin,
            len(body),
            headers.text.encode("latin-1", "replace"),
            body,
        )

    def _runs(self, key: bytes, run: RepeatedRun, tell: Tell) -> Leave | None:
        """Have one run that ran before: what ends it."""
        if run.known.has_ended:
            self._drop(key)
            return None
        if not self._gatekeeper.still_lets_in(run.mark):
            return None
        self._kept.move_to_end(key)
        request_id, began_s = new_request_id(), time.perf_counter()
        hear = partial(self._heard, run, run.client, request_id, began_s, tell)
        return self._short_runs.ask(run.known, request_id, hear).leave

    def _runs_alike(self, key: bytes, cast: Cast, tell: Tell) -> Leave | None:
        """The same of one that says something else. Whoever says a thing for the second time is learnt from on the long
        way: it costs less each time after that."""
        mould = self._moulds.get(cast.key)
        if mould is None or key in self._seen:
            return None
        run = mould.run
        if run.known.has_ended:
            self._moulds.drop(cast.key)
            return None
        if not self._gatekeeper.still_lets_in(run.mark):
            return None
        self._sees(key)
        request_id, began_s = new_request_id(), time.perf_counter()
        client = client_line(cast.client_id)
        hear = partial(self._heard_alike, key, run, client, request_id, began_s, tell)
        read = mould.words.reader(cast, request_id)
        return self._short_runs.ask(run.known, request_id, hear, read, len(cast.words)).leave

    def _heard_alike(self, key: bytes, *facts: Any) -> None:
        if facts[-1] is None:  # it is learnt from as all that are said for the first time
            self._seen.pop(key, None)
        self._heard(*facts)

    def _heard(
        self,
        run: RepeatedRun,
        client: str,
        request_id: str,
        began_s: float,
        tell: Tell,
        ran: Ran,
    ) -> None:
        """One has ended, or was refused, or did not begin. With others of this turn of the loop its answer is made, and
        then they are written: either goes quicker where the other does not come in between."""
        self._untold.append((run, client, request_id, began_s, tell, ran))
        if len(self._untold) == 1:
            # What is read from there on is none of this request, which is named where it ends.
            asyncio.get_running_loop().call_soon(self._tell_all, context=Context())

    def _tell_all(self) -> None:
        untold, self._untold = self._untold, []
        told: list[tuple[Tell, Told | None]] = []
        for run, client, request_id, began_s, tell, ran in untold:
            one = None
            if ran is not None:
                one = run.told(names(request_id, began_s) + client, request_id, ran)
                self._count(len(one[2]))
            told.append((tell, one))
        for tell, one in told:
            try:
                tell(one)
            except Exception:  # boundary: one connection's bug must not cost others their answers
                log.exception("api.not_told")

    def _count(self, sent_bytes: int) -> None:
        if self._outflow is not None:
            self._outflow.sent_bytes += sent_bytes

    def _found(self, key: bytes, repeat: _Repeat) -> tuple[_Repeat, RequestContext] | None:
        """An answer that is kept for a request, once it is paid for and counted."""
        if not self._gatekeeper.still_lets_in(repeat.mark):
            return None
        context = self._short_way.answer(repeat.known, new_request_id())
        if context is None:
            self._drop(key)  # it is learnt anew, if it is a kept answer again
            return None
        self._kept.move_to_end(key)
        return repeat, context

    def note(self, state: dict[str, Any], key: bytes, came: Came) -> None:
        """It takes its usual way, on which it may be learnt."""
        missed, cast = self._missed
        self._note(state, key, cast if missed is key else cast_of(*came, self._most_bytes))

    def _note(self, state: dict[str, Any], key: bytes, cast: Cast | None) -> None:
        note(state, Noted(key, self._short_way.generation, cast))

    def learn(self, visit: Visit, body: bytes) -> None:
        """A route has answered with these bytes, whole."""
        came = noted(visit.scope)
        if came is None or visit.line is None or visit.exchange is None or visit.is_recorded:
            return
        key, came_in, cast = came.key, came.generation, came.cast
        if came_in != self._short_way.generation:
            return  # while it was answered its key may have ended: what was found out is old news
        context = visit.exchange.context
        if header(visit.scope, b"origin") is not None:
            return
        is_hit = context.cache is not None and context.cache.is_hit
        parts = _parts(context, body)
        if parts is None:
            return
        if self._generation != came_in:
            self._kept.clear()
            self._moulds.clear()
            self.bytes, self._generation = 0, came_in
        if is_hit:
            self._keep(key, self._repeat(visit, context, parts))
            return
        # The first time it is only remembered that it came.
        is_again, is_alike = self._sees(key), cast is not None and self._sees(cast.key)
        is_new = cast is not None and is_alike and not self._has_mould(cast.key)
        if (is_again or is_new) and (run := self._run(visit, context, parts)) is not None:
            if is_again:
                self._keep(key, run)
            if cast is not None and is_new and (mould := mould_of(cast, run)) is not None:
                self._moulds.put(cast.key, mould)

    def _has_mould(self, key: bytes) -> bool:
        mould = self._moulds.get(key)
        return mould is not None and not mould.run.known.has_ended

    def _sees(self, key: bytes) -> bool:
        """Whether one came before."""
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)
        return False

    def _keep(self, key: bytes, learnt: "_Repeat | RepeatedRun | None") -> None:
        if learnt is None:
            return
        self._drop(key)
        self._kept[key] = learnt
        self.bytes += learnt.size_bytes
        while self.bytes > MOST_BYTES:
            self._drop(next(iter(self._kept)))

    def _repeat(self, visit: Visit, context: RequestContext, parts: Parts) -> _Repeat | None:
        """What there is to know of one that had a kept answer."""
        known = self._short_way.learn(context, visit.secret)
        if known is None:
            return None
        size_bytes = ENTRY_BYTES + len(parts[-1]) + 4 * context.request.size
        mark = self._gatekeeper.mark_of(visit.scope)
        return _Repeat(known, mark, visit.client_id, *parts, size_bytes)

    def _run(self, visit: Visit, context: RequestContext, parts: Parts) -> RepeatedRun | None:
        """The same of one that ran."""
        request, tokenizer = context.request, context.tokenizer
        if tokenizer is None or report_of(request, context.known_terms, tokenizer):
            return None
        if request.opening or request.prediction is not None:
            return None
        known = self._short_runs.learn(context, visit.secret)
        if known is None:
            return None
        size_bytes = ENTRY_BYTES + 4 * context.request.size + 40 * context.prompt_tokens
        mark = self._gatekeeper.mark_of(visit.scope)
        head, middle, rest = parts
        envelope = rest.partition(b'"choices":')[0]
        body_around = body_of(request.kind is Kind.CHAT, head, middle, envelope)
        return RepeatedRun(known, mark, visit.client_id, body_around, size_bytes)

    def _key(self, around: "_Around", raw: bytes) -> bytes:
        """Of all that a request is made of, in a form that tells its parts apart."""
        made = self._hash.copy()
        made.update(_encode((around, raw)))
        return made.digest()

    def _said(self, repeat: _Repeat, context: RequestContext, began_s: float) -> Told:
        """An answer that is kept."""
        request_id = context.request.request_id
        body = b"%b%b%b%d%b" % (
            repeat.head,
            request_id.removeprefix("req_").encode(),
            repeat.middle,
            context.arrived_utc_ns // 1_000_000_000,
            repeat.tail,
        )
        text = names(request_id, began_s)
        if repeat.client_id is not None:
            text += f"{CLIENT_ID}: {repeat.client_id}\r\n"
        text += limit_lines(context.allowances) + Lines.of(cache_headers(context.cache)).text
        self.answered += 1
        self._count(len(body))
        return 200, Lines(text + bill_lines(context)), body

    def _drop(self, key: bytes) -> None:
        gone = self._kept.pop(key, None)
        if gone is not None:
            self.bytes -= gone.size_bytes


_Around = tuple[Any, ...]
"""What a request is made of beside its body: first its headers."""


def _around(scope: HTTPScope) -> _Around:
    client, server = scope.get("client"), scope.get("server")
    return (
        scope["headers"],
        scope["method"],
        scope["path"],
        scope["query_string"],
        client and client[0],
        server is not None and server[1] is None,  # a unix socket's, where addresses say nothing
    )


def _resolve(telling: "asyncio.Future[Told | None]", told: Told | None) -> None:
    if not telling.done():  # else whoever waited was cancelled
        telling.set_result(told)


_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


def _parts(context: RequestContext, body: bytes) -> Parts | None:
    """An answer around the digits of its id and its time; None for one that is not written that way."""
    id_ = answer_id(context.request).encode()
    created = b"%d" % (context.arrived_utc_ns // 1_000_000_000)
    prefix, _, digits = id_.rpartition(b"-")
    head = b'{"id":"' + prefix + b"-"
    kind = b"chat.completion" if prefix == b"chatcmpl" else b"text_completion"
    middle = b'","object":"' + kind + b'","created":'
    begin = head + digits + middle + created
    is_so = body.startswith(begin) and digits not in body[len(begin) :]
    return (head, middle, body[len(begin) :]) if is_so else None
