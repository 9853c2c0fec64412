"""Answers of the Responses API as structs, and what its items hold."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from llmhost.api.openapi.answers import CostFacts

Item = dict[str, Any]


class ResponseInputDetails(msgspec.Struct, kw_only=True):
    cached_tokens: int
    cache_write_tokens: int


class ResponseOutputDetails(msgspec.Struct, kw_only=True):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, kw_only=True):
    """`llmhost` is there at the end of streams: what is charged."""

    input_tokens: int
    input_tokens_details: ResponseInputDetails
    output_tokens: int
    output_tokens_details: ResponseOutputDetails
    total_tokens: int
    cost: CostFacts | UnsetType = UNSET
    llmhost: dict[str, str] | UnsetType = UNSET


class ResponseFailure(msgspec.Struct, kw_only=True):
    code: str
    message: str


class ResponseIncomplete(msgspec.Struct, kw_only=True):
    reason: Literal["max_output_tokens", "content_filter"]


class ResponseConversation(msgspec.Struct, kw_only=True):
    id: str


class ResponseReasoning(msgspec.Struct, kw_only=True):
    effort: str | None
    summary: str | None


class ResponseForm(msgspec.Struct, kw_only=True):
    format: dict[str, Any]
    verbosity: str


class ResponseAnswer(msgspec.Struct, kw_only=True):
    """A response: what was asked for, and what came of it."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: ResponseFailure | None
    incomplete_details: ResponseIncomplete | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[Item]
    parallel_tool_calls: bool
    previous_response_id: str | None
    conversation: ResponseConversation | None
    prompt_cache_key: str | None
    reasoning: ResponseReasoning
    safety_identifier: str | None
    service_tier: Literal["default", "flex"]
    store: bool
    temperature: float
    text: ResponseForm
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    user: str | None
    metadata: dict[str, str]


class CompactionItem(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["compaction"]
    encrypted_content: str


class CompactionAnswer(msgspec.Struct, kw_only=True):
    """What was said before, as one item."""

    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[CompactionItem]
    usage: ResponseUsage


class InputTokens(msgspec.Struct, kw_only=True):
    object: Literal["response.input_tokens"]
    input_tokens: int
