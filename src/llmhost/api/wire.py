"""OpenAI's request bodies, checked at the edge and turned into core types.

Unknown fields are accepted, because clients send their vendors' extras. A known field with a bad type or range is
refused with its name. A known field that would change the answer and isn't honoured is refused too, never ignored.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from llmhost.core.errors import BadRequest, InvalidValue, MissingParameter, UnsupportedParameter
from llmhost.core.request import GenerationRequest, Kind, Sampling

OWN_TEMPLATE_NAMES = frozenset({"self", "messages", "tools"})
"""What the server itself hands to a chat template."""
MAX_MODEL_CHARS = 512
"""Longer than any name: an unknown one is searched for its nearest, logged and repeated back."""
MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_STOPS_CHARS = 2048
"""Of one stop string, and of all together: each choice builds its automaton on the engine's thread."""
COMPLETION_MAX_TOKENS = 16
"""What /v1/completions gives when nothing is asked for, as OpenAI does."""

Probability = Annotated[float, Meta(ge=0, le=1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
PositiveInt = Annotated[int, Meta(ge=1)]
TokenIds = list[int]
Raw = msgspec.Raw
"""A field that is looked at as text: objects made of it would take many times its size."""
MAX_LOOSE_SIGNS = 200_000
"""Of `{`, `[` and `,` in the fields of a chat that are handed on as they are: a bound to what is made of them."""
NULL = Raw(b"null")
_NOTHING = frozenset({b"null", b"[]", b"{}", b'""', b"false", b"0"})


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class WirePart(msgspec.Struct, frozen=True):
    """One part of a message's content; what other types of part hold is skipped."""

    type: str
    text: str | None = None
    refusal: str | None = None


class WireMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a chat, as sent."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[WirePart] | None = None
    name: str | None = None
    tool_calls: Raw = NULL
    tool_call_id: str | None = None


class WireType(msgspec.Struct, frozen=True):
    """Of an object, only its type."""

    type: str | None = None


class GenerationBody(msgspec.Struct, frozen=True, kw_only=True):
    """What both routes share. Every field may be null, which means absent."""

    model: Annotated[str, Meta(max_length=MAX_MODEL_CHARS)] | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | list[str] | None = None
    max_tokens: PositiveInt | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Raw = NULL
    repetition_penalty: float | None = None
    min_p: Probability | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    stop_token_ids: Raw = NULL
    structured_outputs: Raw = NULL
    ignore_eos: bool | None = None
    priority: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    user: str | None = None


class ChatBody(GenerationBody, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[WireMessage] | None = None
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Raw = NULL
    tool_choice: Raw = NULL
    functions: Raw = NULL
    response_format: Raw = NULL
    reasoning_effort: str | None = None
    function_call: Raw = NULL
    modalities: Raw = NULL
    audio: Raw = NULL
    chat_template_kwargs: Raw = NULL


class CompletionBody(GenerationBody, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | TokenIds] | None = None
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


B = TypeVar("B", bound=msgspec.Struct)
T = TypeVar("T")

_AT = re.compile(r" - at `\$\.?(.*)`$")


def read_body(raw: bytes, shape: type[B]) -> B:
    """Decode a JSON body. Raises BadRequest that names the field in dotted form."""
    try:
        return msgspec.json.decode(raw, type=shape)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The body is not valid JSON: {error}") from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None


def _refusal(message: str) -> BadRequest:
    at = _AT.search(message)
    param = at[1].replace("[...]", "") if at and at[1] else None
    text = _AT.sub("", message).replace("`", "'")
    return InvalidValue(f"{param}: {text}" if param else text, param=param)


def chat_request(
    body: ChatBody, request_id: str, client_request_id: str | None
) -> GenerationRequest:
    """A validated chat. Raises BadRequest."""
    if body.messages is None:
        raise MissingParameter("messages")
    if not body.messages:
        raise InvalidValue("'messages' must hold at least one message.", param="messages")
    _refuse_chat_extras(body)
    _check_loose(body)
    template_kwargs = _loose(body.chat_template_kwargs, dict[str, Any], "chat_template_kwargs")
    for name in OWN_TEMPLATE_NAMES.intersection(template_kwargs or ()):
        raise InvalidValue(
            f"'chat_template_kwargs' may not hold {name!r}; send it as a field of its own.",
            param=f"chat_template_kwargs.{name}",
        )
    return _request(
        body,
        Kind.CHAT,
        request_id,
        client_request_id,
        messages=tuple(_message(m, i) for i, m in enumerate(body.messages)),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        template_kwargs=template_kwargs or {},
    )


def completion_request(
    body: CompletionBody, request_id: str, client_request_id: str | None
) -> GenerationRequest:
    """A validated completion. Raises BadRequest."""
    if body.prompt is None:
        raise MissingParameter("prompt")
    _refuse(
        {
            "logprobs": body.logprobs is not None,
            "echo": bool(body.echo),
            "suffix": bool(body.suffix),
            "best_of": body.best_of is not None and body.best_of != (body.n or 1),
        }
    )
    prompts = _prompts(body.prompt)
    if len(prompts) * (body.n or 1) > MAX_CHOICES:
        raise InvalidValue(
            f"{len(prompts)} prompts with n={body.n or 1} are more than {MAX_CHOICES} choices.",
            param="prompt",
        )
    return _request(
        body,
        Kind.COMPLETION,
        request_id,
        client_request_id,
        prompts=prompts,
        max_tokens=body.max_tokens or COMPLETION_MAX_TOKENS,
    )


def _request(
    body: GenerationBody,
    kind: Kind,
    request_id: str,
    client_request_id: str | None,
    **rest: Any,
) -> GenerationRequest:
    if not body.model:
        raise MissingParameter("model")
    if body.stream_options is not None and not body.stream:
        raise InvalidValue(
            "'stream_options' is only allowed when 'stream' is true.", param="stream_options"
        )
    _refuse(
        {
            "frequency_penalty": bool(body.frequency_penalty),
            "presence_penalty": bool(body.presence_penalty),
            "logit_bias": _asks(body.logit_bias),
            "repetition_penalty": body.repetition_penalty not in (None, 1.0),
            "min_p": bool(body.min_p),
            "min_tokens": bool(body.min_tokens),
            "stop_token_ids": _asks(body.stop_token_ids),
            "structured_outputs": _asks(body.structured_outputs),
        }
    )
    return GenerationRequest(
        request_id=request_id,
        kind=kind,
        model=body.model,
        sampling=_sampling(body),
        stop=_stops(body.stop),
        ignore_eos=bool(body.ignore_eos),
        n=body.n or 1,
        priority=body.priority or 0,
        stream=bool(body.stream),
        client_request_id=client_request_id,
        user=body.user,
        **rest,
    )


def _sampling(body: GenerationBody) -> Sampling:
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k if body.top_k and body.top_k > 0 else None,
        seed=None if body.seed is None else body.seed & (2**63 - 1),
    )


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS:
        raise InvalidValue(
            f"'stop' holds {len(stops)} strings; {MAX_STOPS} are allowed.", param="stop"
        )
    if any(not s for s in stops):
        raise InvalidValue("'stop' holds an empty string.", param="stop")
    if (longest := max(map(len, stops), default=0)) > MAX_STOP_CHARS:
        raise InvalidValue(
            f"'stop' holds a string of {longest} characters; {MAX_STOP_CHARS} are allowed.",
            param="stop",
        )
    if (total := sum(map(len, stops))) > MAX_STOPS_CHARS:
        raise InvalidValue(
            f"The strings of 'stop' are {total} characters together; {MAX_STOPS_CHARS} are allowed.",
            param="stop",
        )
    return stops


def _prompts(prompt: str | list[Any]) -> tuple[str | tuple[int, ...], ...]:
    """A string, token ids, or a list of either."""
    if isinstance(prompt, str):
        return (prompt,)
    if not prompt:
        raise InvalidValue("'prompt' is an empty list.", param="prompt")
    if _are_ids(prompt):
        return (tuple(prompt),)
    for i, item in enumerate(prompt):
        if not isinstance(item, str) and not (isinstance(item, list) and _are_ids(item)):
            raise InvalidValue(
                "A prompt is a string, a list of token ids, or a list of either.",
                param=f"prompt[{i}]",
            )
    return tuple(item if isinstance(item, str) else tuple(item) for item in prompt)


def _are_ids(items: list[Any]) -> bool:
    return all(type(item) is int for item in items)


def _message(message: WireMessage, place: int) -> dict[str, Any]:
    content = message.content
    if content is None and message.role not in ("assistant", "function"):
        raise InvalidValue(
            f"A message of role '{message.role}' needs content.", param=f"messages[{place}].content"
        )
    if isinstance(content, list):
        content = "".join(
            _part_text(p, f"messages[{place}].content[{i}]") for i, p in enumerate(content)
        )
    extras = {
        key: value
        for key in ("name", "tool_call_id")
        if (value := getattr(message, key)) is not None
    }
    calls = _loose(message.tool_calls, list[dict[str, Any]], f"messages[{place}].tool_calls")
    if calls is not None:
        extras["tool_calls"] = calls
    return {"role": message.role, "content": content, **extras}


def _part_text(part: WirePart, at: str) -> str:
    kind = part.type
    field = "refusal" if kind == "refusal" else "text"
    if kind not in ("text", "input_text", "refusal"):
        raise UnsupportedParameter(
            f"Content of type {kind!r} is not supported; this server takes text.",
            param=f"{at}.type",
        )
    text = part.refusal if kind == "refusal" else part.text
    if text is None:
        raise InvalidValue(
            f"A part of type {kind!r} needs {field!r}, a string.", param=f"{at}.{field}"
        )
    return text


def _said(raw: Raw) -> bytes:
    """A value's JSON without its white space, for comparing; a long one is none of those that it is compared with."""
    text = bytes(raw)
    return b"".join(text.split()) if len(text) < 100 else text


def _asks(raw: Raw) -> bool:
    return _said(raw) not in _NOTHING


def _check_loose(body: ChatBody) -> None:
    fields = [body.chat_template_kwargs, *(message.tool_calls for message in body.messages or ())]
    signs = sum(bytes(raw).count(sign) for raw in fields for sign in (b"{", b"[", b","))
    if signs > MAX_LOOSE_SIGNS:
        raise InvalidValue(
            f"'chat_template_kwargs' and all 'tool_calls' together have {signs} braces, brackets and commas;"
            f" this server takes {MAX_LOOSE_SIGNS}.",
            param="messages",
        )


def _loose(raw: Raw, shape: type[T], param: str) -> T | None:
    """The value of a field that was kept as text. Raises InvalidValue."""
    try:
        return msgspec.json.decode(raw, type=shape | None)
    except msgspec.ValidationError as error:
        text = _AT.sub("", str(error)).replace("`", "'")
        raise InvalidValue(f"{param}: {text}", param=param) from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None


def _refuse_chat_extras(body: ChatBody) -> None:
    form = _loose(body.response_format, WireType, "response_format")
    modalities = _said(body.modalities)
    _refuse(
        {
            "logprobs": bool(body.logprobs),
            "top_logprobs": bool(body.top_logprobs),
            "tools": _asks(body.tools) and _said(body.tool_choice) != b'"none"',
            "functions": _asks(body.functions) and _said(body.function_call) != b'"none"',
            "reasoning_effort": body.reasoning_effort not in (None, "none"),
            "response_format": form is not None and form.type != "text",
            "modalities": modalities not in (*_NOTHING, b'["text"]'),
            "audio": _asks(body.audio),
        }
    )


def _refuse(asked: dict[str, bool]) -> None:
    for name, is_asked in asked.items():
        if is_asked:
            raise UnsupportedParameter(
                f"The parameter '{name}' is not supported by this version of the server.",
                param=name,
            )
