"""OpenAI's requests: bodies, checked as a whole and turned into core types.

Unknown fields are accepted, because clients send their vendors' extras. A known field with a bad type or range is
refused with its name. A known field that would change the answer and isn't honoured is refused too, never ignored.
"""

from typing import Any

from llmhost.api.bodies import (
    MAX_CHOICES,
    ChatBody,
    CompletionBody,
    GenerationBody,
    WirePrediction,
)
from llmhost.api.chat_messages import message_of
from llmhost.api.extras import OF_CHATS, GenerationExtras, Refusals
from llmhost.api.loose import NULL, Raw, asks, loose, refuse, said
from llmhost.api.sampling import bad_words, sampling, stop_token_ids, stops
from llmhost.api.structured import Form, chat_form, completion_form
from llmhost.core.errors import InvalidValue, MissingParameter, UnsupportedParameter
from llmhost.core.request import GenerationRequest, Kind

OWN_TEMPLATE_NAMES = frozenset({"self", "messages", "tools"})
"""What the server itself hands to a chat template."""
COMPLETION_MAX_TOKENS = 16
"""What /v1/completions gives when nothing is asked for, as OpenAI does."""
MAX_LOOSE_SIGNS = 200_000
"""Of `{`, `[` and `,` in the fields of a chat that are handed on as they are: a bound to what is made of them."""
FLEX_PRIORITY = 100
"""So far requests of the flex tier step back behind others, in `priority`."""


def chat_request(
    body: ChatBody, request_id: str, client_request_id: str | None
) -> GenerationRequest:
    """A validated chat. Raises BadRequest."""
    if body.messages is None:
        raise MissingParameter("messages")
    if not body.messages:
        raise InvalidValue("'messages' must hold at least one message.", param="messages")
    _refuse_of_chat(body)
    _check_loose(body)
    messages = tuple(message_of(m, i) for i, m in enumerate(body.messages))
    return _request(
        body,
        Kind.CHAT,
        request_id,
        client_request_id,
        sampling=sampling(body, logprobs=_chat_logprobs(body), choices=body.n or 1),
        messages=messages,
        max_tokens=_chat_limit(body),
        template_kwargs=_template_kwargs(body),
        opening=_opening(messages) if body.echo else "",
        hides_thoughts=body.include_reasoning is False,
        prediction=_prediction(body.prediction),
        **_prompt_end(body),
        form=chat_form(body),
    )


def _prediction(sent: WirePrediction | None) -> str | None:
    """Raises BadRequest."""
    if sent is None:
        return None
    if isinstance(sent.content, str):
        return sent.content
    for place, part in enumerate(sent.content):
        if part.type != "text" or part.text is None:
            raise InvalidValue(
                "A prediction is a text, or parts of type text.",
                param=f"prediction.content[{place}]",
            )
    return "".join(part.text or "" for part in sent.content)


def _opening(messages: tuple[dict[str, Any], ...]) -> str:
    """The last message, if it is of the one who answers."""
    last = messages[-1]
    return str(last["content"] or "") if last["role"] == "assistant" else ""


def _template_kwargs(body: ChatBody) -> dict[str, Any]:
    documents = loose(body.documents, list[dict[str, Any]], "documents")
    told: dict[str, Any] = {"documents": documents} if documents else {}
    return told | template_kwargs(body.reasoning_effort, body.chat_template_kwargs, body.verbosity)


def template_kwargs(effort: str | None, raw: Raw, verbosity: str | None = None) -> dict[str, Any]:
    """What a chat template is told beside its messages. Raises BadRequest."""
    given = loose(raw, dict[str, Any], "chat_template_kwargs") or {}
    for name in OWN_TEMPLATE_NAMES.intersection(given):
        raise InvalidValue(
            f"'chat_template_kwargs' may not hold {name!r}; send it as a field of its own.",
            param=f"chat_template_kwargs.{name}",
        )
    length = {} if verbosity is None else {"verbosity": verbosity}
    return _of_effort(effort) | length | given


def _of_effort(effort: str | None) -> dict[str, Any]:
    """What chat templates know an effort by: most have a switch only, of one of two names."""
    if effort is None:
        return {}
    thinks = effort != "none"
    return {"reasoning_effort": effort, "enable_thinking": thinks, "thinking": thinks}


def completion_request(
    body: CompletionBody, request_id: str, client_request_id: str | None
) -> GenerationRequest:
    """A validated completion. Raises BadRequest."""
    if body.prompt is None:
        raise MissingParameter("prompt")
    _REFUSED_OF_COMPLETIONS.check(body)
    prompts = texts_or_ids(body.prompt, "prompt")
    _check_suffix(body)
    best_of = _best_of(body)
    choices = len(prompts) * (best_of or body.n or 1)
    if choices > MAX_CHOICES:
        raise InvalidValue(
            f"{len(prompts)} prompts with {best_of or body.n or 1} choices each are more than"
            f" {MAX_CHOICES} choices.",
            param="prompt",
        )
    return _request(
        body,
        Kind.COMPLETION,
        request_id,
        client_request_id,
        sampling=sampling(body, logprobs=body.logprobs, choices=choices),
        prompts=prompts,
        suffix=body.suffix or "",
        max_tokens=_completion_limit(body),
        best_of=best_of,
        echo=bool(body.echo),
        add_special_tokens=body.add_special_tokens is not False,
        form=completion_form(body),
    )


def _check_suffix(body: CompletionBody) -> None:
    """What comes behind makes another prompt than that which was sent."""
    others = ("echo", "prompt_logprobs", "truncate_prompt_tokens")
    for name in others if body.suffix else ():
        if getattr(body, name) not in (None, False):
            raise InvalidValue(f"'{name}' can't be had with 'suffix'. Send one.", param=name)


def _request(
    body: GenerationBody,
    kind: Kind,
    request_id: str,
    client_request_id: str | None,
    *,
    max_tokens: int | None,
    form: Form,
    **rest: Any,
) -> GenerationRequest:
    if not body.model:
        raise MissingParameter("model")
    if body.stream_options is not None and not body.stream:
        raise InvalidValue(
            "'stream_options' is only allowed when 'stream' is true.", param="stream_options"
        )
    if max_tokens is not None and (body.min_tokens or 0) > max_tokens:
        raise InvalidValue(
            f"'min_tokens' is {body.min_tokens}, more than the {max_tokens} that there may be.",
            param="min_tokens",
        )
    is_flex = body.service_tier == "flex"
    return GenerationRequest(
        request_id=request_id,
        kind=kind,
        model=body.model,
        tools=form.tools,
        grammar=form.grammar,
        may_call=form.may_call,
        most_calls=form.most_calls,
        custom_tools=form.custom_tools,
        text_grammars=form.text_grammars,
        tool_places=form.tool_places,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        stop=stops(body.stop),
        tells_stop=bool(body.include_stop_str_in_output),
        shows_special=body.skip_special_tokens is False,
        stop_token_ids=stop_token_ids(body.stop_token_ids),
        bad_words=bad_words(body.bad_words),
        ignore_eos=bool(body.ignore_eos),
        n=body.n or 1,
        return_token_ids=bool(body.return_token_ids),
        include_cost=bool(body.include_cost),
        priority=(body.priority or 0) + (FLEX_PRIORITY if is_flex else 0),
        has_priority=body.priority is not None,
        is_flex=is_flex,
        timeout_ms=body.timeout_ms,
        cache_salt=body.cache_salt or "",
        truncate_prompt_tokens=body.truncate_prompt_tokens,
        stream=bool(body.stream),
        client_request_id=client_request_id,
        user=body.user,
        **rest,
    )


def _prompt_end(body: ChatBody) -> dict[str, bool]:
    """How a chat's prompt ends: with the beginning of an answer, with its last message, or within that."""
    if body.add_special_tokens:
        raise UnsupportedParameter(
            "A chat's template writes its special tokens itself. Leave 'add_special_tokens' out.",
            param="add_special_tokens",
        )
    if not body.continue_final_message:
        return {"add_generation_prompt": body.add_generation_prompt is not False}
    if body.add_generation_prompt:
        raise InvalidValue(
            "'continue_final_message' goes on with a message, and 'add_generation_prompt' begins one. Send one.",
            param="continue_final_message",
        )
    return {"add_generation_prompt": False, "continue_final_message": True}


def _chat_limit(body: ChatBody) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        limit: int | None = getattr(body, name)
        if limit == 0:
            raise InvalidValue(f"'{name}' is at least 1.", param=name)
    return body.max_completion_tokens or body.max_tokens


def _completion_limit(body: CompletionBody) -> int:
    """0 is for those who want to know of their prompt only."""
    if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
        raise InvalidValue(
            "'max_tokens' is at least 1, or 0 with 'echo' or 'prompt_logprobs'.", param="max_tokens"
        )
    return COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens


def _chat_logprobs(body: ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidValue(
            "'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs"
        )
    return None


def _best_of(body: CompletionBody) -> int | None:
    n, best_of = body.n or 1, body.best_of or None
    if best_of is None or best_of == n:
        return None
    if best_of < n:
        raise InvalidValue(f"'best_of' is {best_of}, less than 'n', {n}.", param="best_of")
    if body.stream:
        raise InvalidValue(
            f"'best_of' may not be more than 'n', {n}, when 'stream' is true: the best are known at the end.",
            param="best_of",
        )
    return best_of


def texts_or_ids(given: str | list[Any], param: str) -> tuple[str | tuple[int, ...], ...]:
    """A string, token ids, or a list of either."""
    if isinstance(given, str):
        return (given,)
    if not given:
        raise InvalidValue(f"'{param}' is an empty list.", param=param)
    if _are_ids(given):
        return (tuple(given),)
    for i, item in enumerate(given):
        if not isinstance(item, str) and not (isinstance(item, list) and _are_ids(item)):
            raise InvalidValue(
                f"'{param}' is a string, a list of token ids, or a list of either.",
                param=f"{param}[{i}]",
            )
    return tuple(item if isinstance(item, str) else tuple(item) for item in given)


def _are_ids(items: list[Any]) -> bool:
    return all(type(item) is int for item in items)


def _check_loose(body: ChatBody) -> None:
    fields = [
        raw
        for raw in (
            *(body.chat_template_kwargs, body.documents),
            *(each.tool_calls for each in body.messages or ()),
            *(each.function_call for each in body.messages or ()),
        )
        if raw is not NULL
    ]
    if not fields:
        return
    signs = sum(bytes(raw).count(sign) for raw in fields for sign in (b"{", b"[", b","))
    if signs > MAX_LOOSE_SIGNS:
        raise InvalidValue(
            f"'chat_template_kwargs' and all 'tool_calls' together have {signs} braces, brackets and commas;"
            f" this server takes {MAX_LOOSE_SIGNS}.",
            param="messages",
        )


_REFUSED_OF_CHATS = Refusals(ChatBody, (*GenerationExtras.__struct_fields__, *OF_CHATS))
_REFUSED_OF_COMPLETIONS = Refusals(CompletionBody, GenerationExtras.__struct_fields__)


def _refuse_of_chat(body: ChatBody) -> None:
    _REFUSED_OF_CHATS.check(body)
    if body.functions is not NULL and asks(body.functions):
        refuse({"functions": said(body.function_call) != b'"none"'})
