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


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class WireMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a chat, as sent."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


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
    logit_bias: dict[str, float] | None = None
    repetition_penalty: float | None = None
    min_p: Probability | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    stop_token_ids: TokenIds | None = None
    structured_outputs: dict[str, Any] | None = None
    ignore_eos: bool | None = None
    priority: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    user: str | None = None


class ChatBody(GenerationBody, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[WireMessage] | None = None
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionBody(GenerationBody, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[Any] | None = None
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


B = TypeVar("B", bound=msgspec.Struct)

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
    for name in OWN_TEMPLATE_NAMES.intersection(body.chat_template_kwargs or ()):
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
        template_kwargs=body.chat_template_kwargs or {},
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
            "logit_bias": bool(body.logit_bias),
            "repetition_penalty": body.repetition_penalty not in (None, 1.0),
            "min_p": bool(body.min_p),
            "min_tokens": bool(body.min_tokens),
            "stop_token_ids": bool(body.stop_token_ids),
            "structured_outputs": bool(body.structured_outputs),
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
        for key, value in msgspec.structs.asdict(message).items()
        if value is not None and key not in ("role", "content")
    }
    return {"role": message.role, "content": content, **extras}


def _part_text(part: dict[str, Any], at: str) -> str:
    kind = part.get("type")
    field = "refusal" if kind == "refusal" else "text"
    if kind not in ("text", "input_text", "refusal"):
        raise UnsupportedParameter(
            f"Content of type {kind!r} is not supported; this server takes text.",
            param=f"{at}.type",
        )
    text = part.get(field)
    if not isinstance(text, str):
        raise InvalidValue(
            f"A part of type {kind!r} needs {field!r}, a string.", param=f"{at}.{field}"
        )
    return text


def _refuse_chat_extras(body: ChatBody) -> None:
    wants_text = body.response_format is None or body.response_format.get("type") == "text"
    _refuse(
        {
            "logprobs": bool(body.logprobs),
            "top_logprobs": bool(body.top_logprobs),
            "tools": bool(body.tools) and body.tool_choice != "none",
            "functions": bool(body.functions) and body.function_call != "none",
            "reasoning_effort": body.reasoning_effort not in (None, "none"),
            "response_format": not wants_text,
            "modalities": bool(body.modalities) and body.modalities != ["text"],
            "audio": bool(body.audio),
        }
    )


def _refuse(asked: dict[str, bool]) -> None:
    for name, is_asked in asked.items():
        if is_asked:
            raise UnsupportedParameter(
                f"The parameter '{name}' is not supported by this version of the server.",
                param=name,
            )
