"""Ollama's requests: bodies, checked as a whole and turned into core types.

What is absent of `options` has Ollama's own defaults, but for the penalty of repetitions, which is off. What a body
says of loading is the operator's to decide and is read over. What would change the answer and isn't honoured is
refused.
"""

import re
from dataclasses import dataclass
from typing import Any

from llmhost.api.bodies import ChatBody
from llmhost.api.loose import Raw, asks, loose, read_body, refuse, said
from llmhost.api.ollama.bodies import (
    AnswerBody,
    OllamaBody,
    OllamaChat,
    OllamaEmbed,
    OllamaEmbeddings,
    OllamaGenerate,
    OllamaOptions,
    Think,
)
from llmhost.api.ollama.messages import messages_of
from llmhost.api.pooling_wire import MAX_TEXTS
from llmhost.api.sampling import SEED_MASK, stops
from llmhost.api.structured import chat_form, check_size
from llmhost.core.errors import Forbidden, InvalidValue, MissingParameter
from llmhost.core.grammar import GrammarSpec
from llmhost.core.request import GenerationRequest, Kind, PoolingWish
from llmhost.core.sampling import Sampling

LATEST = ":latest"
TEMPERATURE, TOP_K, TOP_P = 0.8, 40, 0.9
"""Ollama's defaults."""
_DURATION = re.compile(r"[+-]?(\d+(\.\d*)?(ns|us|µs|ms|s|m|h))+|[+-]?0")
NO_OPTIONS = OllamaOptions()


@dataclass(frozen=True, slots=True)
class Asked:
    """What an answer must know beside its request."""

    model: str
    """As it was named."""
    is_chat: bool


def parse_chat(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, Asked]:
    """Raises BadRequest."""
    body = read_body(raw, OllamaChat)
    messages = messages_of(body.messages or ())
    asked = Asked(_model(body), is_chat=True)
    if not messages:
        return _load(body, request_id, client_id), asked
    form = chat_form(ChatBody(tools=body.tools))
    return _answer(
        body,
        request_id,
        client_id,
        kind=Kind.CHAT,
        messages=messages,
        tools=form.tools,
        grammar=_format(body.format),
        may_call=form.may_call,
        most_calls=form.most_calls,
        template_kwargs=_template_kwargs(body.think),
    ), asked


def parse_generate(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, Asked]:
    """Raises BadRequest."""
    body = read_body(raw, OllamaGenerate)
    asked = Asked(_model(body), is_chat=False)
    refuse(
        {
            "template": bool(body.template),
            "context": asks(body.context),
            "images": asks(body.images),
            **{name: bool(getattr(body, name)) for name in ("width", "height", "steps")},
        }
    )
    if not body.prompt:
        return _load(body, request_id, client_id), asked
    prompt = _prompt(body, body.prompt)
    return _answer(body, request_id, client_id, grammar=_format(body.format), **prompt), asked


def _prompt(body: OllamaGenerate, text: str) -> dict[str, Any]:
    """A chat of one message; or a text as it is, with one behind it where the model is to write what is between."""
    plain = "raw" if body.raw else "suffix" if body.suffix else None
    if plain is None:
        system = [{"role": "system", "content": body.system}] if body.system else []
        return {
            "kind": Kind.CHAT,
            "messages": (*system, {"role": "user", "content": text}),
            "template_kwargs": _template_kwargs(body.think),
        }
    for name in ("system", "think"):
        if getattr(body, name):
            raise InvalidValue(
                f"With {plain!r} the prompt is taken as it is, so {name!r} has no place in it. Send one of them.",
                param=name,
            )
    return {"kind": Kind.COMPLETION, "prompts": (text,), "suffix": body.suffix or ""}


def embed_request(
    body: OllamaEmbed | OllamaEmbeddings, request_id: str, client_id: str | None
) -> GenerationRequest:
    """A request for vectors. Raises BadRequest."""
    name = "input" if isinstance(body, OllamaEmbed) else "prompt"
    given: str | list[str] | None = getattr(body, name)
    if given is None:
        raise MissingParameter(name)
    texts = (given,) if isinstance(given, str) else tuple(given)
    if not 0 < len(texts) <= MAX_TEXTS:
        raise InvalidValue(
            f"'{name}' holds {len(texts)} texts; 1 to {MAX_TEXTS} are allowed in one request.",
            param=name,
        )
    check_keep_alive(body.keep_alive)
    is_whole = isinstance(body, OllamaEmbed) and body.truncate is False
    about = {**_about(body, request_id, client_id), "cache_salt": ""}
    return GenerationRequest(
        **about,
        kind=Kind.EMBEDDING,
        prompts=texts,
        pooled=PoolingWish(
            fields=((name, len(texts)),),
            is_cut=not is_whole,
            dimensions=body.dimensions if isinstance(body, OllamaEmbed) else None,
        ),
    )


def _load(body: AnswerBody, request_id: str, client_id: str | None) -> GenerationRequest:
    """A request that says nothing: the model is to be there. That it should not is not for callers to say."""
    if check_keep_alive(body.keep_alive):
        raise Forbidden(
            f"'keep_alive' 0 without a prompt asks to unload {_model(body)!r}, which only an operator can:"
            " `llmhost unload`."
        )
    return GenerationRequest(
        **_about(body, request_id, client_id),
        kind=Kind.CHAT,
        only_loads=True,
        stream=body.stream is not False,
    )


def _answer(
    body: AnswerBody, request_id: str, client_id: str | None, **prompt: Any
) -> GenerationRequest:
    check_keep_alive(body.keep_alive)
    options = body.options or NO_OPTIONS
    limit = options.num_predict
    return GenerationRequest(
        **_about(body, request_id, client_id),
        **prompt,
        hides_thoughts=body.think is False,
        sampling=_sampling(body, options),
        max_tokens=limit if limit is not None and limit > 0 else None,
        takes_less=True,
        context_tokens=options.num_ctx,
        stop=stops(options.stop, "options.stop"),
        stream=body.stream is not False,
    )


def _about(body: OllamaBody, request_id: str, client_id: str | None) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "model": _model(body).removesuffix(LATEST),
        "include_cost": bool(body.include_cost),
        "priority": body.priority or 0,
        "timeout_ms": body.timeout_ms,
        "cache_salt": body.cache_salt or "",
        "client_request_id": client_id,
    }


def _model(body: OllamaBody) -> str:
    if not body.model:
        raise MissingParameter("model")
    return body.model


def _sampling(body: AnswerBody, options: OllamaOptions) -> Sampling:
    _check_options(options)
    if body.top_logprobs and not body.logprobs:
        raise InvalidValue(
            "'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs"
        )
    top_k = TOP_K if options.top_k is None else options.top_k
    seed = options.seed
    is_penalised = options.repeat_penalty is not None and options.repeat_last_n != 0
    return Sampling(
        temperature=TEMPERATURE if options.temperature is None else options.temperature,
        top_p=TOP_P if options.top_p is None else options.top_p,
        top_k=top_k if top_k > 0 else None,
        min_p=options.min_p or 0.0,
        repetition_penalty=(options.repeat_penalty or 1.0) if is_penalised else 1.0,
        presence_penalty=options.presence_penalty or 0.0,
        frequency_penalty=options.frequency_penalty or 0.0,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        seed=None if seed is None or seed < 0 else seed & SEED_MASK,
    )


def _check_options(options: OllamaOptions) -> None:
    has_penalty = options.repeat_penalty not in (None, 1.0)
    refuse(
        {
            "options.mirostat": bool(options.mirostat),
            "options.typical_p": options.typical_p not in (None, 0, 1),
            "options.tfs_z": options.tfs_z not in (None, 0, 1),
        }
    )
    if has_penalty and options.repeat_last_n not in (None, 0, -1):
        raise InvalidValue(
            f"'options.repeat_last_n' is {options.repeat_last_n}: here the penalty of repetitions looks at all tokens,"
            " which is -1, or at none, which is 0.",
            param="options.repeat_last_n",
        )


def _template_kwargs(think: Think | None) -> dict[str, Any]:
    """Under every name that templates know; those that know none think as they always do."""
    if think is None:
        return {}
    effort = {"reasoning_effort": think} if isinstance(think, str) else {}
    return {**effort, "enable_thinking": bool(think), "thinking": bool(think)}


def _format(raw: Raw) -> GrammarSpec | None:
    """`json`, or a schema, which is enforced as far as it can be."""
    if said(raw) in (b"null", b'""'):
        return None
    if said(raw) == b'"json"':
        return GrammarSpec("json_object", "", param="format")
    check_size(raw, "format")
    text = bytes(raw).decode("utf-8", "replace")
    if not text.lstrip().startswith("{"):
        raise InvalidValue("'format' is \"json\" or a JSON schema, an object.", param="format")
    loose(raw, dict[str, Any], "format")
    return GrammarSpec("json_schema", text, is_strict=False, param="format")


def check_keep_alive(raw: Raw) -> bool:
    """Whether it says that the model is to go at once. Raises InvalidValue for what is no duration."""
    kept: str | float | None = loose(raw, str | float, "keep_alive")  # type: ignore[arg-type]
    if isinstance(kept, str) and not _DURATION.fullmatch(kept):
        raise InvalidValue(
            f"'keep_alive' is {kept[:80]!r}; it is seconds, or a duration such as \"5m\".",
            param="keep_alive",
        )
    if isinstance(kept, str):
        return not re.search(r"[1-9]", kept)
    return kept == 0
