"""Requests for vectors and scores on their way through the stages: one request, many sequences, no text.

What a model is for decides how its texts become sequences. A cross-encoder reads both texts of a pair in one sequence;
an embedder reads each text once, and a score is the cosine of two vectors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from llmhost.core.errors import ContextTooLong, InvalidValue
from llmhost.core.ports import RunnerFacts, Tokenizer
from llmhost.core.request import GenerationRequest, Kind, PoolingWish
from llmhost.core.sequence import Pooling, SequenceSpec
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.pacing import PacedEngine
from llmhost.pipeline.terms import Terms

BATCHES_AHEAD = 2
"""Full batches of one request that are with the engine at once: one that runs, and the next."""

_SERVES: dict[str, tuple[Kind, ...]] = {
    "generate": (Kind.CHAT, Kind.COMPLETION, Kind.RESPONSE, Kind.DECISION),
    "embed": (Kind.EMBEDDING, Kind.SCORE),
    "classify": (Kind.CLASSIFY, Kind.SCORE),
}
_IS_FOR = {
    "generate": ("generates text", "/v1/chat/completions or /v1/completions"),
    "embed": ("makes embeddings", "/v1/embeddings, /v1/rerank or /v1/score"),
    "classify": (
        "classifies texts",
        "/v1/classify, or to /v1/rerank and /v1/score if it has one label",
    ),
}

Vector = NDArray[np.float32]


def check_purpose(request: GenerationRequest, facts: RunnerFacts) -> None:
    """Raises InvalidValue when the model is not for what it is asked."""
    if request.kind not in _SERVES[facts.task]:
        does, routes = _IS_FOR[facts.task]
        raise InvalidValue(
            f"The model {request.model!r} {does} and can't be asked here. Post to {routes}, or ask another model.",
            param="model",
        )
    if request.kind is Kind.SCORE and facts.task == "classify" and len(facts.labels) != 1:
        raise InvalidValue(
            f"The model {request.model!r} tells {len(facts.labels)} labels apart; texts are scored by a model with"
            " one, or by one that makes embeddings. POST /v1/classify gives its labels.",
            param="model",
        )
    wanted = request.pooled.dimensions if request.pooled else None
    if wanted is not None and wanted > facts.pooled_size:
        raise InvalidValue(
            f"'dimensions' is {wanted}; the vectors of {request.model!r} have {facts.pooled_size} numbers.",
            param="dimensions",
        )


def pooled_terms(
    request: GenerationRequest, tokenizer: Tokenizer, facts: RunnerFacts, longest_tokens: int
) -> Terms:
    """Tokenise. Raises InvalidValue or ContextTooLong that names the text."""
    wish = request.pooled
    assert wish is not None
    most = _most_tokens(wish, longest_tokens)
    if wish.pairs and facts.task == "classify":
        made = [_pair(request, tokenizer, pair, most, longest_tokens) for pair in wish.pairs]
        params = [param_of(wish, pair[1]) for pair in wish.pairs]
    else:
        seconds = {second for _, second in wish.pairs}
        for_second = _document_tokens(wish, tokenizer, most, longest_tokens)
        mosts = (for_second if i in seconds else most for i in range(len(request.prompts)))
        made = [(_ids(request, tokenizer, i, each), None) for i, each in enumerate(mosts)]
        params = [param_of(wish, i) for i in range(len(made))]
    for (ids, _), param in zip(made, params, strict=True):
        if not ids:
            raise InvalidValue("The text is empty: it has no tokens.", param=param)
        if wrong := [token for token in ids if not 0 <= token < facts.vocab_size]:
            raise InvalidValue(
                f"Token id {wrong[0]} is outside this model's vocabulary of {facts.vocab_size}.",
                param=param,
            )
        if len(ids) > longest_tokens:
            raise ContextTooLong(
                prompt_tokens=len(ids), max_tokens=None, limit_tokens=longest_tokens, param=param
            )
    return Terms(
        tuple(tuple(ids) for ids, _ in made),
        request.sampling,
        frozenset(),
        poolings=tuple(Pooling(facts.task, second, wish.is_raw) for _, second in made),
    )


def param_of(wish: PoolingWish, place: int) -> str:
    """The name of a text's parameter: `documents[3]`."""
    for name, count in wish.fields:
        if place < count:
            return name if count == 1 else f"{name}[{place}]"
        place -= count
    raise IndexError(place)


def _most_tokens(wish: PoolingWish, longest_tokens: int) -> int | None:
    """What texts are cut to; None when they are not."""
    if not wish.is_cut:
        return None
    if wish.most_tokens is not None and wish.most_tokens > longest_tokens:
        raise InvalidValue(
            f"'truncate_prompt_tokens' is {wish.most_tokens}; this model holds {longest_tokens}."
            " -1 cuts to what it holds.",
            param="truncate_prompt_tokens",
        )
    return wish.most_tokens or longest_tokens


def _document_tokens(
    wish: PoolingWish, tokenizer: Tokenizer, most: int | None, room: int
) -> int | None:
    """What a document is cut to with the special tokens around it, where there is so much room for it."""
    if wish.most_document_tokens is None:
        return most
    whole = wish.most_document_tokens + len(tokenizer.encode_whole("")[0])
    return min(whole, room if most is None else min(most, room))


def _ids(
    request: GenerationRequest, tokenizer: Tokenizer, place: int, most: int | None
) -> list[int]:
    prompt = request.prompts[place]
    if isinstance(prompt, str):
        return tokenizer.encode_whole(prompt, most_tokens=most)[0]
    return list(prompt[:most])


def _pair(
    request: GenerationRequest,
    tokenizer: Tokenizer,
    pair: tuple[int, int],
    most: int | None,
    longest_tokens: int,
) -> tuple[list[int], int | None]:
    first, second = (request.prompts[place] for place in pair)
    assert isinstance(first, str) and isinstance(second, str), "the edge takes no ids in pairs"
    wish, kept = request.pooled, None
    if wish is not None and wish.most_document_tokens is not None:
        room = (most or longest_tokens) - len(tokenizer.encode_whole(first, "")[0])
        if room > 0:  # else the query is too long by itself
            kept = min(wish.most_document_tokens, room)
    return tokenizer.encode_whole(first, second, most_tokens=most, most_second=kept)


def pooled_specs(context: RequestContext) -> Iterator[SequenceSpec]:
    """The sequences as their engine takes them, which from now on is given them some at a time."""
    request, entry, replica = context.request, context.known_deployment.entry, context.replica
    assert replica is not None
    paced = PacedEngine(replica.engine, BATCHES_AHEAD * entry.spec.max_batch_size)
    context.replica = replace(replica, engine=paced)
    for index, (prompt, pooling) in enumerate(zip(context.prompts, context.poolings, strict=True)):
        yield SequenceSpec(
            request_id=request.request_id,
            index=index,
            model=entry.ref,
            prompt=prompt,
            sampling=request.sampling,
            seed=0,
            max_new_tokens=0,
            pooling=pooling,
            priority=request.priority,
            arrival_ns=context.arrived_ns,
            deadline_ns=context.deadline_ns,
            tenant=context.known_caller.org,
        )


def vectors(pooled: Sequence[Sequence[float]], wish: PoolingWish) -> list[Vector]:
    """What the model said, as arrays; with `dimensions` only the first numbers, made length 1 again."""
    arrays = [np.frombuffer(cast(Any, each), np.float32) for each in pooled]
    size = wish.dimensions
    if size is None:
        return arrays
    short = [array[:size] for array in arrays]
    return short if wish.is_raw else [_unit(array) for array in short]


def scores(pooled: Sequence[Sequence[float]], context: RequestContext) -> list[float]:
    """Of each pair: a cross-encoder's own, or the cosine of two vectors."""
    wish = context.request.pooled
    assert wish is not None
    if context.poolings[0].task == "classify":
        return [each[0] for each in pooled]
    units = [_unit(np.frombuffer(cast(Any, each), np.float32)) for each in pooled]
    return [cosine(units[first], units[second]) for first, second in wish.pairs]


def cosine(one: Vector, other: Vector) -> float:
    """Of two that are 1 long. What rounding has put beyond 1 is 1: clients check the range."""
    return min(max(float(one @ other), -1.0), 1.0)


def _unit(array: Vector) -> Vector:
    return array / max(float(np.linalg.norm(array)), 1e-12)
