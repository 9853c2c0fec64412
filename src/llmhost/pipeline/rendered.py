"""Prompts that were rendered and tokenised before, for those who may share them: most requests that repeat need not
be rendered again to find out that they do.

It holds what a pure function has made of a request, so it is never wrong; it is bounded in tokens.
"""

from collections import OrderedDict
from collections.abc import Callable

from llmhost.cache.keys import Keys, Place, is_deterministic
from llmhost.cache.response_cache import Rules
from llmhost.cache.wish import HEADER
from llmhost.core.ports import Tokenizer
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.terms import Terms

MOST_TOKENS = 250_000
LONGEST_CHARS = 65_536
"""To hash longer requests would take the HTTP loop too long."""


class Rendered:
    """Used from the HTTP loop."""

    def __init__(self, keys: Keys, rules: Callable[[str], Rules]) -> None:
        """`rules` has what the cache does for a model: who has no part in it is hardly asked again, and finding out
        costs more than it saves."""
        self._keys = keys
        self._rules = rules
        self._kept: OrderedDict[bytes, tuple[Tokenizer, Terms]] = OrderedDict()
        self._tokens = 0

    def key(self, context: RequestContext) -> bytes | None:
        """None for requests that will hardly repeat, or are too long."""
        request = context.request
        use = self._rules(context.known_deployment.entry.name).use
        if use == "off" or (use == "asked" and context.headers.get(HEADER) is None):
            return None
        if not is_deterministic(request.sampling) or request.size > LONGEST_CHARS:
            return None
        place = Place(
            scope=context.known_caller.scope("team"),
            org=context.known_caller.org,
            model=context.model,
            epoch="",
        )
        return self._keys.of_words(place, request)

    def get(self, key: bytes, tokenizer: Tokenizer) -> Terms | None:
        found = self._kept.get(key)
        if found is None or found[0] is not tokenizer or not found[1].still_hold(tokenizer):
            return None
        self._kept.move_to_end(key)
        return found[1]

    def put(self, key: bytes, tokenizer: Tokenizer, terms: Terms) -> None:
        if (old := self._kept.pop(key, None)) is not None:
            self._tokens -= _size(old[1])
        self._kept[key] = tokenizer, terms
        self._tokens += _size(terms)
        while self._tokens > MOST_TOKENS:
            _, (_, gone) = self._kept.popitem(last=False)
            self._tokens -= _size(gone)


def _size(terms: Terms) -> int:
    return 100 + sum(map(len, terms.prompts)) + sum(map(len, terms.echoes)) // 4
