"""Streams of one mould: they are let in by the short way, and what is written of them is the route's to write.

So whoever comes between a connection and the route is asked about each of them, as about all others.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from litestar.types import Receive

from llmhost.api.chats.wire import ChatBeside
from llmhost.api.door import DisconnectWatch
from llmhost.api.gatekeeper import vouch
from llmhost.api.moulds import Cast, Moulds, Words, noted, words_of
from llmhost.api.report import report_of
from llmhost.api.visit import Visit
from llmhost.core.errors import LlmhostError
from llmhost.pipeline.short_run import KnownRun, ShortRuns

MOST_SEEN = 1_000
"""Moulds of which one came."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What is known of all streams of one mould."""

    known: KnownRun
    words: Words
    beside: ChatBeside
    """What the route knows of them, beside their requests."""


class MouldedStreams:
    """One per host."""

    def __init__(self, short_runs: ShortRuns) -> None:
        self._short_runs = short_runs
        self._moulds: Moulds[Stream] = Moulds()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._generation = short_runs.generation

    def __len__(self) -> int:
        return len(self._moulds)

    @property
    def ran(self) -> int:
        """Streams that ran by the short way, or were refused by it."""
        return self._short_runs.streamed

    async def answers(
        self, visit: Visit, receive: Receive, respond: Callable[[ChatBeside], Awaitable[None]]
    ) -> bool:
        """Have a call run that is as others before it, but for what it says, and answered by `respond`; False, and
        nothing was taken for it, where it has to take the long way. Raises why it is refused."""
        came = noted(visit.scope)
        if came is None or came.cast is None or visit.line is None:
            return False
        self._forget()
        stream = self._moulds.get(came.cast.key)
        if stream is None:
            return False
        if stream.known.has_ended:
            self._moulds.drop(came.cast.key)
            return False
        with DisconnectWatch(receive, visit.leave, visit.line) as is_there:
            if not is_there or not await self._is_begun(visit, stream, came.cast):
                return False
            if not visit.is_gone:
                await respond(stream.beside)
        return True

    async def _is_begun(self, visit: Visit, stream: Stream, cast: Cast) -> bool:
        assert visit.line is not None
        read = stream.words.reader(cast, visit.request_id)
        visit.opening = asyncio.current_task()
        try:
            exchange = await self._short_runs.begin(
                stream.known, visit.request_id, read, len(cast.words)
            )
        except LlmhostError:
            vouch(visit.scope)  # whoever is refused is known
            raise
        visit.opening = None
        if exchange is None:
            return False
        vouch(visit.scope)
        visit.line.take_body()
        visit.exchange, visit.org = exchange, stream.known.context.known_caller.org
        return True

    def _forget(self) -> None:
        """What was learnt before something changed that it rests on: it may hold on to models that are gone."""
        if self._generation != self._short_runs.generation:
            self._moulds.clear()
            self._generation = self._short_runs.generation

    def learn(self, visit: Visit, beside: ChatBeside) -> None:
        """A route has streamed an answer to its end."""
        came = noted(visit.scope)
        if came is None or came.cast is None or visit.line is None or visit.exchange is None:
            return
        self._forget()
        context, key = visit.exchange.context, came.cast.key
        if came.generation != self._generation or self._moulds.get(key) is not None:
            return
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > MOST_SEEN:
                self._seen.popitem(last=False)
            return
        request, tokenizer = context.request, context.tokenizer
        if tokenizer is None or report_of(request, context.known_terms, tokenizer):
            return
        if request.opening or request.prediction is not None:
            return
        known = self._short_runs.learn(context, visit.secret, is_stream=True)
        words = None if known is None else words_of(came.cast, request)
        if known is not None and words is not None:
            self._moulds.put(key, Stream(known.without_words(), words, beside))
