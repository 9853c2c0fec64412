"""Anthropic's answers as structs: what `api/messages_frames.py` writes by hand. A test holds them against it."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from llmhost.api.openapi.answers import CostFacts


class TextBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="thinking"):
    thinking: str
    signature: str


class ToolUseBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class ThinkingDetails(msgspec.Struct, kw_only=True):
    thinking_tokens: int


class MessageUsage(msgspec.Struct, kw_only=True):
    """`input_tokens` are those that no cache had."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    service_tier: Literal["standard"]
    output_tokens_details: ThinkingDetails | UnsetType = UNSET
    cost: CostFacts | UnsetType = UNSET


StopReason = Literal[
    "end_turn",
    "max_tokens",
    "stop_sequence",
    "tool_use",
    "refusal",
    "model_context_window_exceeded",
]


class StopDetails(msgspec.Struct, kw_only=True):
    type: Literal["refusal"]
    category: None
    explanation: None


class MessageAnswer(msgspec.Struct, kw_only=True):
    """A whole message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    stop_details: StopDetails | UnsetType = UNSET


class CountedTokens(msgspec.Struct, kw_only=True):
    input_tokens: int


class MessageErrorDetails(msgspec.Struct, kw_only=True):
    error_code: str | UnsetType = UNSET
    param: str | UnsetType = UNSET


class MessageRefusal(msgspec.Struct, kw_only=True):
    type: str
    message: str
    details: MessageErrorDetails | UnsetType = UNSET


class MessageError(msgspec.Struct, kw_only=True):
    """A refusal or a failure."""

    type: Literal["error"]
    error: MessageRefusal
    request_id: str | None
