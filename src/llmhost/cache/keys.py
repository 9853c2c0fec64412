"""What makes two requests the same: keyed hashes over who shares, which model, what it is asked and how. Pure.

The hash is keyed with a secret of the node, so that keys tell nothing to those who see them, and nobody outside can
make two requests that collide.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from llmhost.core.grammar import GrammarSpec
from llmhost.core.request import GenerationRequest
from llmhost.core.sampling import Sampling

DIGEST_BYTES = 24
NAME_BYTES = 8
PUBLIC = "public"

_GREEDY: dict[str, Any] = {"top_p": 1.0, "top_k": None, "min_p": 0.0, "seed": None}

_encode = msgspec.msgpack.Encoder(enc_hook=str).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Who shares an answer, and what it depends on beside the request."""

    scope: str
    """As `Caller.scope` says, with the request's own salt."""
    org: str
    model: str
    """`name@version`, what its files hold, and the adapter's the same."""
    epoch: str
    """What else is in force: the safety policy, its rules, the price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request in its model's tokens: all that its answer depends on."""

    prompts: tuple[tuple[int, ...], ...]
    sampling: Sampling
    most_tokens: int
    stop_ids: frozenset[int]
    shown: tuple[str, ...]
    grammar: GrammarSpec | None
    begins_with_thoughts: bool
    request: GenerationRequest
    """For what needs no tokens: stop strings, numbers of choices."""


def is_deterministic(sampling: Sampling) -> bool:
    """Whether the same request is meant to have the same answer."""
    return sampling.is_greedy or sampling.seed is not None


def canonical(sampling: Sampling) -> Sampling:
    """The same drawing in one way of saying it: with temperature 0 filters and seed change nothing."""
    if sampling.is_greedy:
        sampling = replace(sampling, **_GREEDY)
    if sampling.logit_bias:
        sampling = replace(sampling, logit_bias=tuple(sorted(sampling.logit_bias)))
    return sampling


class Keys:
    """Makes keys with one node's secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def of_tokens(self, place: Place, asked: Asked) -> str:
        """The key of an answer. Its first two parts name model and organisation, so that both can be forgotten."""
        request = asked.request
        said = (
            place.scope,
            place.model,
            place.epoch,
            asked.prompts,
            _fields(canonical(asked.sampling)),
            asked.most_tokens,
            sorted(asked.stop_ids),
            asked.shown,
            None if asked.grammar is None else _fields(asked.grammar, "kind", "text", "is_strict"),
            asked.begins_with_thoughts,
            request.min_tokens,
            request.stop,
            request.tells_stop,
            request.ignore_eos,
            request.n,
            request.best_of,
        )
        digest = self._digest(b"answer", _encode(said), DIGEST_BYTES)
        return f"{self.model_mark(place.model)}.{self.org_mark(place)}.{digest}"

    def of_words(self, place: Place, request: GenerationRequest) -> bytes | None:
        """What finds a request's tokens again without rendering it; None for what can't be told apart by words."""
        said = (
            place.scope,
            place.model,
            request.kind.value,
            request.messages,
            request.prompts,
            request.suffix,
            request.tools,
            request.template_kwargs,
            request.add_generation_prompt,
            request.continue_final_message,
            request.add_special_tokens,
            request.truncate_prompt_tokens,
            request.may_call,
            request.most_calls,
            request.shows_special,
            request.echo,
            request.return_token_ids,
            request.best_of,
            request.n,
            request.bad_words,
            request.stop_token_ids,
            request.min_tokens,
            request.ignore_eos,
            None if request.grammar is None else (request.grammar.kind, request.grammar.text),
            _fields(request.sampling),
        )
        try:
            return self._hash(b"words", _encode(said), DIGEST_BYTES).digest()
        except (TypeError, ValueError, RecursionError):
            return None

    def of_partition(self, parts: Sequence[str]) -> str:
        """Of what has to be the same where only the last thing asked may be worded otherwise."""
        return self._digest(b"partition", _encode(parts), DIGEST_BYTES)

    def of_pattern(self, facts: Sequence[str]) -> str:
        """The signature of what requests have in common."""
        return self._digest(b"pattern", _encode(facts), NAME_BYTES)

    def model_mark(self, model: str) -> str:
        """Of the model's name alone: what was kept of all its versions has the same."""
        return self._digest(b"model", model.partition("@")[0].encode(), NAME_BYTES)

    def org_mark(self, place: Place) -> str:
        """Of the organisation that owns an answer; what is public belongs to nobody."""
        return self.mark_of_org(None if place.scope.partition("\0")[0] == PUBLIC else place.org)

    def mark_of_org(self, org: str | None) -> str:
        return PUBLIC if org is None else self._digest(b"org", org.encode(), NAME_BYTES)

    def seal(self, key: str, value: bytes) -> bytes:
        """A value with what proves that this node kept it under that key."""
        return self._hash(b"value", key.encode() + b"\0" + value, NAME_BYTES * 2).digest() + value

    def opened(self, key: str, sealed: bytes) -> bytes | None:
        """The value, or None where something else than this node has written it, or under another key."""
        value = sealed[NAME_BYTES * 2 :]
        return value if self.seal(key, value) == sealed else None

    def _digest(self, person: bytes, said: bytes, size: int) -> str:
        return self._hash(person, said, size).hexdigest()

    def _hash(self, person: bytes, said: bytes, size: int) -> "hashlib.blake2b":
        return hashlib.blake2b(said, digest_size=size, key=self._secret, person=person)


def _fields(record: Any, *names: str) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in names or type(record).__dataclass_fields__)
