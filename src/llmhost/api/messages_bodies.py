"""Anthropic's request bodies as they are sent: every field that this server knows, with its type and its range.

What fields mean together is `messages_wire`'s. Every field may be null, which means absent.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from llmhost.api.bodies import MAX_MODEL_CHARS, MAX_TIMEOUT_MS, Count, Probability, Temperature
from llmhost.api.loose import NULL, Raw
from llmhost.api.tools import Name


class WireSource(msgspec.Struct, frozen=True):
    """Where a document is."""

    type: str
    media_type: str | None = None
    data: str | None = None
    file_id: str | None = None
    content: Raw = NULL


class WireCitations(msgspec.Struct, frozen=True):
    enabled: bool | None = None


class WireBlock(msgspec.Struct, frozen=True):
    """One block of a message's content; what other types of block hold is skipped."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: Raw = NULL
    tool_use_id: str | None = None
    content: Raw = NULL
    is_error: bool | None = None
    source: Raw = NULL
    title: str | None = None
    context: str | None = None
    citations: WireCitations | None = None


class WireTurn(msgspec.Struct, frozen=True):
    """One message, as sent."""

    role: Literal["user", "assistant", "system"]
    content: str | list[WireBlock]


class WireTool(msgspec.Struct, frozen=True):
    """A tool. Only one of the caller's own has a schema, and no type or `custom`."""

    name: Name | None = None
    type: str | None = None
    description: str | None = None
    input_schema: Raw = NULL
    strict: bool | None = None


class WireToolChoice(msgspec.Struct, frozen=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class WireThinking(msgspec.Struct, frozen=True):
    """How much is thought is the model's to decide: the budget is checked and no more."""

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: Annotated[int, Meta(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class WireOutputFormat(msgspec.Struct, frozen=True):
    type: str
    schema: Raw = NULL


class WireOutputConfig(msgspec.Struct, frozen=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: WireOutputFormat | None = None


class WireMetadata(msgspec.Struct, frozen=True):
    user_id: str | None = None


class MessagesBody(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/messages, and without `max_tokens` /v1/messages/count_tokens."""

    model: Annotated[str, Meta(max_length=MAX_MODEL_CHARS)] | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    messages: list[WireTurn] | None = None
    system: str | list[WireBlock] | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Count | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    metadata: WireMetadata | None = None
    tools: Raw = NULL
    tool_choice: WireToolChoice | None = None
    thinking: WireThinking | None = None
    output_config: WireOutputConfig | None = None
    output_format: WireOutputFormat | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    mcp_servers: Raw = NULL
    container: Raw = NULL
    thread: Raw = NULL
    seed: int | None = None
    priority: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    timeout_ms: Annotated[int, Meta(ge=1, le=MAX_TIMEOUT_MS)] | None = None
    cache_salt: Annotated[str, Meta(max_length=128)] | None = None
    include_cost: bool | None = None
