"""Text to a model's tokens and back: vLLM's and llama.cpp's routes, which ask no model.

Which of the two shapes is spoken is told by the body's fields: `content` is llama.cpp's, `prompt` and `messages` are
vLLM's. Of ids alone the answer has both.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import asgi
from litestar.types import ControllerRouterHandler
from msgspec import Meta

from llmhost.api.bodies import MAX_MODEL_CHARS, ChatBody
from llmhost.api.estimate import Count, Read, counting_route
from llmhost.api.gatekeeper import Identify
from llmhost.api.loose import NULL, Raw, asks, bounded, read_body, refuse
from llmhost.api.tokens import Spelling
from llmhost.api.wire import chat_request
from llmhost.core.caller import Caller
from llmhost.core.errors import InvalidValue, MissingParameter
from llmhost.core.ports import Tokenizer
from llmhost.core.request import GenerationRequest, Kind
from llmhost.deploy.catalogue import Catalogue
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.processor import Processor
from llmhost.pipeline.terms import INLINE_CHARS, is_short, rendered
from llmhost.pipeline.tokenise import text_of, tokens_of
from llmhost.tenants.refusals import Allowances

MAX_TOKENS = 1_000_000
"""Ids that one request may bring."""

TOKEN_ROUTES = ("tokenize", "detokenize", "apply-template")
"""Each with and without /v1."""

T = TypeVar("T")
Answer = tuple[dict[str, Any], Allowances]
Headers = Mapping[str, str]


class TokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """POST /tokenize. Every field may be null, which means absent; a chat's own are those of its route."""

    model: Annotated[str, Meta(max_length=MAX_MODEL_CHARS)] | None = None
    prompt: str | None = None
    content: str | None = None
    messages: Raw = NULL
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None
    chat_template: Raw = NULL


class DetokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """POST /detokenize."""

    model: Annotated[str, Meta(max_length=MAX_MODEL_CHARS)] | None = None
    tokens: Raw = NULL


def tokenize_routes(
    processor: Processor, catalogue: Catalogue, identify: Identify, max_body_bytes: int
) -> list[ControllerRouterHandler]:
    """Handlers of all routes."""
    desk = _Desk(processor, catalogue)
    routes: dict[str, tuple[Read, Count]] = {
        "tokenize": (parse_tokenize, desk.tokenize),
        "detokenize": (parse_detokenize, desk.detokenize),
        "apply-template": (_read_template, desk.render),
    }
    assert tuple(routes) == TOKEN_ROUTES
    return [
        asgi([f"/{name}", f"/v1/{name}"], copy_scope=False)(
            counting_route(identify, read, count, max_body_bytes)
        )
        for name, (read, count) in routes.items()
    ]


def parse_tokenize(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, TokenizeBody]:
    body = read_body(raw, TokenizeBody)
    refuse(
        {"chat_template": asks(body.chat_template), "parse_special": body.parse_special is False}
    )
    given = [name for name in ("prompt", "content") if getattr(body, name) is not None]
    given += ["messages"] if body.messages is not NULL else []
    if not given:
        raise MissingParameter("prompt")
    if len(given) > 1:
        raise InvalidValue(
            f"'{given[0]}' and '{given[1]}' are both sent. Send one.", param=given[1]
        )
    if given == ["messages"]:
        return _chat(raw, request_id, client_id), body
    text = body.content if body.prompt is None else body.prompt
    assert text is not None
    special = body.add_special_tokens is not False if body.content is None else body.add_special
    request = _blank(body.model, request_id, client_id)
    return replace(request, prompts=(text,), add_special_tokens=bool(special)), body


def parse_detokenize(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, list[int]]:
    body = read_body(raw, DetokenizeBody)
    tokens = bounded(body.tokens, list[int], "tokens", most=MAX_TOKENS)
    if tokens is None:
        raise MissingParameter("tokens")
    return _blank(body.model, request_id, client_id), tokens


def _read_template(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, None]:
    return _chat(raw, request_id, client_id), None


def _chat(raw: bytes, request_id: str, client_id: str | None) -> GenerationRequest:
    body = read_body(raw, ChatBody)
    named = msgspec.structs.replace(body, model=body.model or "-")
    return replace(chat_request(named, request_id, client_id), model=body.model or "")


def _blank(model: str | None, request_id: str, client_id: str | None) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id, kind=Kind.COMPLETION, model=model or "", client_request_id=client_id
    )


class _Desk:
    """Answers the routes."""

    def __init__(self, processor: Processor, catalogue: Catalogue) -> None:
        self._processor = processor
        self._catalogue = catalogue

    async def tokenize(
        self, request: GenerationRequest, body: TokenizeBody, headers: Headers, caller: Caller
    ) -> Answer:
        context, tokenizer = await self._found(request, headers, caller)
        write = partial(_tokens_object, context, body, tokenizer)
        return await _quickly(write, is_short=is_short(context.request)), context.allowances

    async def detokenize(
        self, request: GenerationRequest, tokens: list[int], headers: Headers, caller: Caller
    ) -> Answer:
        context, tokenizer = await self._found(request, headers, caller)
        text = await _quickly(
            partial(text_of, tokens, tokenizer), is_short=len(tokens) <= INLINE_CHARS
        )
        return {"prompt": text, "content": text}, context.allowances

    async def render(
        self, request: GenerationRequest, _: None, headers: Headers, caller: Caller
    ) -> Answer:
        context, tokenizer = await self._found(request, headers, caller)
        whole = context.request
        text = await _quickly(partial(rendered, whole, tokenizer), is_short=is_short(whole))
        return {"prompt": text}, context.allowances

    async def _found(
        self, request: GenerationRequest, headers: Headers, caller: Caller
    ) -> tuple[RequestContext, Tokenizer]:
        """The context and its tokenizer. Who may use one model only need not name it."""
        if not request.model:
            names = self._catalogue.names_for(caller)
            if len(names) != 1:
                raise MissingParameter("model")
            request = replace(request, model=names[0])
        context = await self._processor.inquiries.tokenizer(request, headers, caller)
        assert context.tokenizer is not None, "it was found"
        return context, context.tokenizer


async def _quickly(work: Callable[[], T], *, is_short: bool) -> T:
    """In a thread, if it could take long."""
    return work() if is_short else await asyncio.to_thread(work)


def _tokens_object(
    context: RequestContext, body: TokenizeBody, tokenizer: Tokenizer
) -> dict[str, Any]:
    tokens = tokens_of(context.request, tokenizer)
    if body.content is not None:
        return {"tokens": _pieces(tokens, tokenizer) if body.with_pieces else tokens}
    strings = {"token_strs": _strings(tokens, tokenizer)} if body.return_token_strs else {}
    return {
        "count": len(tokens),
        "max_model_len": context.longest_tokens,
        "tokens": tokens,
        **strings,
    }


def _strings(tokens: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    spelling = Spelling(tokenizer)
    return [spelling.of(token).text for token in tokens]


def _pieces(tokens: Sequence[int], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """llama.cpp's: a piece that is no whole characters is its bytes."""
    spelling = Spelling(tokenizer)
    return [{"id": token, "piece": _piece(spelling, token)} for token in tokens]


def _piece(spelling: Spelling, token: int) -> str | list[int]:
    spelled = spelling.of(token)
    is_whole = spelled.data is None or spelled.key == spelled.text
    return spelled.text if is_whole else list(spelled.data or b"")
