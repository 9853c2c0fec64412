"""OpenAI's request bodies as they are sent: every field that this server knows, with its type and its range.

What is allowed in a field by itself is said here; what fields mean together is `wire`'s. Every field may be null,
which means absent.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from llmhost.api.extras import GenerationExtras
from llmhost.api.loose import NULL, Raw

MAX_MODEL_CHARS = 512
"""Longer than any name: an unknown one is searched for its nearest, logged and repeated back."""
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
MAX_TIMEOUT_MS = 86_400_000
"""A day: longer is no deadline."""

Probability = Annotated[float, Meta(ge=0, le=1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Repetition = Annotated[float, Meta(ge=0.01, le=10)]
Count = Annotated[int, Meta(ge=0)]
Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
TopLogprobs = Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)]
TokenIds = list[int]
Tier = Literal["auto", "default", "flex", "priority", "scale", "fast"]


Label = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[dict[Annotated[str, Meta(max_length=64)], Label], Meta(max_length=16)]
"""What a caller wants to find an object by: up to 16 pairs."""


class StreamOptions(msgspec.Struct, frozen=True):
    include_obfuscation: bool | None = None
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class WireFile(msgspec.Struct, frozen=True):
    """A file, as a data URL or by the id that it was uploaded with."""

    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None
    file_url: str | None = None


class WirePart(msgspec.Struct, frozen=True):
    """One part of a message's content; what other types of part hold is skipped."""

    type: str
    text: str | None = None
    refusal: str | None = None
    file: WireFile | None = None


class WirePrediction(msgspec.Struct, frozen=True):
    """What the caller thinks that the answer is."""

    type: Literal["content"]
    content: str | list[WirePart]


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class WireMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a chat, as sent."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[WirePart] | None = None
    name: str | None = None
    tool_calls: Raw = NULL
    function_call: Raw = NULL
    refusal: str | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class GenerationBody(GenerationExtras, frozen=True, kw_only=True):
    """What both routes share."""

    model: Annotated[str, Meta(max_length=MAX_MODEL_CHARS)] | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    seed: int | None = None
    n: Choices | None = None
    stop: str | list[str] | None = None
    max_tokens: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Raw = NULL
    repetition_penalty: Repetition | None = None
    min_p: Probability | None = None
    min_tokens: Count | None = None
    stop_token_ids: Raw = NULL
    bad_words: Raw = NULL
    allowed_token_ids: Raw = NULL
    prompt_logprobs: TopLogprobs | None = None
    return_token_ids: bool | None = None
    include_cost: bool | None = None
    response_format: Raw = NULL
    structured_outputs: Raw = NULL
    guided_json: Raw = NULL
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    ignore_eos: bool | None = None
    priority: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    service_tier: Tier | None = None
    timeout_ms: Annotated[int, Meta(ge=1, le=MAX_TIMEOUT_MS)] | None = None
    cache_salt: Annotated[str, Meta(max_length=128)] | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=1)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    user: str | None = None


class ChatBody(GenerationBody, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[WireMessage] | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Raw = NULL
    tool_choice: Raw = NULL
    parallel_tool_calls: bool | None = None
    functions: Raw = NULL
    reasoning_effort: Effort | None = None
    include_reasoning: bool | None = None
    function_call: Raw = NULL
    modalities: Raw = NULL
    audio: Raw = NULL
    moderation: Raw = NULL
    web_search_options: Raw = NULL
    chat_template: Raw = NULL
    parse_tool_calls: Raw = NULL
    reasoning_format: Raw = NULL
    verbosity: Literal["low", "medium", "high"] | None = None
    prediction: WirePrediction | None = None
    chat_template_kwargs: Raw = NULL
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    echo: bool | None = None
    documents: Raw = NULL
    metadata: Metadata | None = None
    store: bool | None = None


class CompletionBody(GenerationBody, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | TokenIds] | None = None
    logprobs: TopLogprobs | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, Meta(ge=0, le=MAX_CHOICES)] | None = None
