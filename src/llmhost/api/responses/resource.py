"""The response object: all of its members, always."""

from typing import Any

import msgspec

from llmhost.api.loose import loose, said
from llmhost.api.responses.bodies import WireInputFormat, WireOwnTool, WireTool
from llmhost.api.responses.namespaces import NAMESPACE
from llmhost.api.responses.wire import NO_REASONING, NO_TEXT, Asked, strictness
from llmhost.core.errors import LlmhostError
from llmhost.core.output import FinishReason, Usage

Resource = dict[str, Any]

QUEUED, IN_PROGRESS = "queued", "in_progress"
COMPLETED, INCOMPLETE, FAILED, CANCELLED = "completed", "incomplete", "failed", "cancelled"

_REASONS = {
    FinishReason.LENGTH: "max_output_tokens",
    FinishReason.CONTENT_FILTER: "content_filter",
}


def response_id(request_id: str) -> str:
    return f"resp_{request_id.removeprefix('req_')}"


def beginning(asked: Asked, created_s: int) -> Resource:
    """A response that has nothing to say yet."""
    body, request = asked.body, asked.request
    text, reasoning = body.text or NO_TEXT, body.reasoning or NO_REASONING
    conversation = asked.conversation
    return {
        "id": response_id(request.request_id),
        "object": "response",
        "created_at": created_s,
        "completed_at": None,
        "status": IN_PROGRESS,
        "background": asked.is_background,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "model": request.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "conversation": None if conversation is None else {"id": conversation},
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort,
            "summary": reasoning.summary or reasoning.generate_summary,
        },
        "safety_identifier": body.safety_identifier,
        "service_tier": "flex" if request.is_flex else "default",
        "store": asked.is_stored,
        "temperature": request.sampling.temperature,
        "text": {"format": asked.formed_as, "verbosity": text.verbosity or "medium"},
        "tool_choice": _tool_choice(asked),
        "tools": [_shown(tool) for tool in asked.tools],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": request.sampling.top_p,
        "presence_penalty": request.sampling.presence_penalty,
        "frequency_penalty": request.sampling.frequency_penalty,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
        "metadata": body.metadata or {},
    }


def _shown(tool: WireTool) -> dict[str, Any]:
    if tool.type == NAMESPACE:
        about = {"name": tool.name, "description": tool.description or ""}
        return {"type": NAMESPACE, **about, "tools": [_tool(each) for each in tool.tools or ()]}
    return _tool(tool)


def _tool(tool: WireOwnTool) -> dict[str, Any]:
    if tool.type == "custom":
        form = tool.format or WireInputFormat("text")
        about = {"name": tool.name, "description": tool.description}
        return {"type": "custom", **about, "format": msgspec.to_builtins(form)}
    known = msgspec.json.decode(tool.parameters) if said(tool.parameters) != b"null" else None
    return {
        "type": tool.type,
        "name": tool.name,
        "description": tool.description,
        "parameters": known,
        "strict": strictness(tool),
    }


def _tool_choice(asked: Asked) -> Any:
    return loose(asked.body.tool_choice, Any, "tool_choice") or "auto"


def ended(
    begun: Resource,
    reason: FinishReason | None,
    output: list[dict[str, Any]],
    usage: Usage,
    completed_s: int,
    extras: dict[str, Any],
) -> Resource:
    """What it was, once its answer has come to an end. `extras` are said in its usage."""
    why = None if reason is None else _REASONS.get(reason)
    return {
        **begun,
        "status": COMPLETED if why is None else INCOMPLETE,
        "incomplete_details": None if why is None else {"reason": why},
        "completed_at": completed_s if why is None else None,
        "output": output,
        "usage": {**usage_object(usage), **extras},
    }


def failed(
    begun: Resource,
    error: LlmhostError,
    output: list[dict[str, Any]],
    used: dict[str, Any] | None = None,
) -> Resource:
    """`used` is its usage, where it is paid for all the same."""
    return {
        **begun,
        "status": FAILED,
        "error": {"code": failure_code(error), "message": error.message},
        "output": output,
        "usage": used,
    }


def failure_code(error: LlmhostError) -> str:
    """One of the few that OpenAI's clients know in a response; others are in error events."""
    return "rate_limit_exceeded" if error.status == 429 else "server_error"


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
