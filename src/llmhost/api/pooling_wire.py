"""Bodies of the routes for vectors and scores, checked at the edge: OpenAI's embeddings, Cohere's and Jina's rerank,
vLLM's score and classify. The same rules as in `wire`: unknown fields are accepted, known ones that are wrong, or that
would change the answer and aren't honoured, are refused by name.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llmhost.api.bodies import MAX_MODEL_CHARS, MAX_TIMEOUT_MS, TokenIds
from llmhost.api.extras import Refusals
from llmhost.api.loose import NULL, Raw, asks, refuse
from llmhost.api.wire import texts_or_ids
from llmhost.core.errors import InvalidValue, MissingParameter
from llmhost.core.request import GenerationRequest, Kind, PoolingWish

MAX_TEXTS = 2048
"""Texts of one request, as OpenAI has it."""


class WireText(msgspec.Struct, frozen=True):
    """A text in an object, as Cohere's and Jina's clients send it."""

    text: str


class PoolingBody(msgspec.Struct, frozen=True, kw_only=True):
    """What all of these routes share. Every field may be null, which means absent."""

    model: Annotated[str, Meta(max_length=MAX_MODEL_CHARS)] | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    use_activation: bool | None = None
    priority: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    timeout_ms: Annotated[int, Meta(ge=1, le=MAX_TIMEOUT_MS)] | None = None
    user: str | None = None
    include_cost: bool | None = None


class EmbeddingBody(PoolingBody, frozen=True, kw_only=True):
    """POST /v1/embeddings."""

    input: str | list[str | int | TokenIds] | None = None
    messages: Raw = NULL
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    normalize: bool | None = None
    embed_dtype: Raw = NULL
    endianness: Raw = NULL
    embd_normalize: Raw = NULL


_REFUSED_OF_EMBEDDINGS = Refusals(EmbeddingBody, ("embed_dtype", "endianness", "embd_normalize"))


class ClassifyBody(PoolingBody, frozen=True, kw_only=True):
    """POST /v1/classify."""

    input: str | list[str | int | TokenIds] | None = None
    messages: Raw = NULL


class RerankBody(PoolingBody, frozen=True, kw_only=True):
    """POST /v1/rerank."""

    query: str | WireText | None = None
    documents: list[str | WireText] | None = None
    top_n: Annotated[int, Meta(ge=0)] | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Annotated[int, Meta(ge=1)] | None = None
    max_chunks_per_doc: int | None = None
    rank_fields: Raw = NULL


class ScoreBody(PoolingBody, frozen=True, kw_only=True):
    """POST /v1/score."""

    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    data_1: str | list[str] | None = None
    data_2: str | list[str] | None = None


def embedding_request(
    body: EmbeddingBody, request_id: str, client_id: str | None
) -> GenerationRequest:
    """A validated request for embeddings. Raises BadRequest."""
    refuse({"messages": asks(body.messages)})
    _REFUSED_OF_EMBEDDINGS.check(body)
    return _of_input(
        body,
        body.input,
        Kind.EMBEDDING,
        request_id,
        client_id,
        dimensions=body.dimensions,
        is_raw=body.normalize is False or body.use_activation is False,
    )


def classify_request(
    body: ClassifyBody, request_id: str, client_id: str | None
) -> GenerationRequest:
    """A validated request for labels. Raises BadRequest."""
    refuse({"messages": asks(body.messages)})
    is_raw = body.use_activation is False
    return _of_input(body, body.input, Kind.CLASSIFY, request_id, client_id, is_raw=is_raw)


def rerank_request(body: RerankBody, request_id: str, client_id: str | None) -> GenerationRequest:
    """A validated request for documents in their order of relevance. Raises BadRequest."""
    if body.query is None:
        raise MissingParameter("query")
    if body.documents is None:
        raise MissingParameter("documents")
    refuse(
        {
            "max_chunks_per_doc": body.max_chunks_per_doc not in (None, 1),
            "rank_fields": asks(body.rank_fields),
        }
    )
    texts = tuple(_text(item) for item in (body.query, *body.documents))
    fields = (("query", 1), ("documents", len(body.documents)))
    pairs = tuple((0, place) for place in range(1, len(texts)))
    return _scoring(body, texts, fields, pairs, request_id, client_id, body.max_tokens_per_doc)


def score_request(body: ScoreBody, request_id: str, client_id: str | None) -> GenerationRequest:
    """A validated request for the scores of pairs: one to one, one to many, or many to as many. Raises BadRequest."""
    for names in (("queries", "documents"), ("data_1", "data_2"), ("text_1", "text_2")):
        if any(getattr(body, name) is not None for name in names):
            break
    sides = []
    for name in names:
        given = getattr(body, name)
        if given is None:
            raise MissingParameter(name)
        sides.append([given] if isinstance(given, str) else given)
    ones, others = sides
    fields = ((names[0], len(ones)), (names[1], len(others)))
    if len(ones) not in (1, len(others)):
        raise InvalidValue(
            f"'{names[0]}' holds {len(ones)} texts and '{names[1]}' {len(others)}: send one, or as many as there.",
            param=names[0],
        )
    pairs = tuple((i if len(ones) > 1 else 0, len(ones) + i) for i in range(len(others)))
    return _scoring(body, (*ones, *others), fields, pairs, request_id, client_id)


def _scoring(
    body: PoolingBody,
    texts: tuple[str, ...],
    fields: tuple[tuple[str, int], ...],
    pairs: tuple[tuple[int, int], ...],
    request_id: str,
    client_id: str | None,
    most_document_tokens: int | None = None,
) -> GenerationRequest:
    for name, count in fields:
        _check_count(name, count)
    return _request(
        *(body, Kind.SCORE, texts, request_id, client_id),
        fields=fields,
        pairs=pairs,
        is_raw=body.use_activation is False,
        most_document_tokens=most_document_tokens,
    )


def _of_input(
    body: PoolingBody,
    given: str | list[Any] | None,
    kind: Kind,
    request_id: str,
    client_id: str | None,
    **wish: Any,
) -> GenerationRequest:
    if given is None:
        raise MissingParameter("input")
    texts = texts_or_ids(given, "input")
    _check_count("input", len(texts))
    fields = (("input", len(texts)),)
    return _request(body, kind, texts, request_id, client_id, fields=fields, **wish)


def _request(
    body: PoolingBody,
    kind: Kind,
    texts: tuple[str | tuple[int, ...], ...],
    request_id: str,
    client_id: str | None,
    **wish: Any,
) -> GenerationRequest:
    if not body.model:
        raise MissingParameter("model")
    refuse(
        {
            "add_special_tokens": body.add_special_tokens is False,
            "truncation_side": body.truncation_side == "left",
        }
    )
    cut = body.truncate_prompt_tokens
    if cut == 0:
        raise InvalidValue(
            "'truncate_prompt_tokens' is 0, which leaves nothing; -1 cuts to what the model holds.",
            param="truncate_prompt_tokens",
        )
    return GenerationRequest(
        request_id=request_id,
        kind=kind,
        model=body.model,
        prompts=texts,
        pooled=PoolingWish(
            is_cut=cut is not None, most_tokens=None if cut in (None, -1) else cut, **wish
        ),
        priority=body.priority or 0,
        timeout_ms=body.timeout_ms,
        client_request_id=client_id,
        user=body.user,
        include_cost=bool(body.include_cost),
    )


def _text(item: str | WireText) -> str:
    return item if isinstance(item, str) else item.text


def _check_count(name: str, count: int) -> None:
    if count == 0:
        raise InvalidValue(f"'{name}' is an empty list.", param=name)
    if count > MAX_TEXTS:
        raise InvalidValue(
            f"'{name}' holds {count} texts; {MAX_TEXTS} are allowed in one request.", param=name
        )
