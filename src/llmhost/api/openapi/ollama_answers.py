"""Ollama's answers as structs: what `api/ollama` writes by hand. A test holds them against what a server says."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from llmhost.api.openapi.answers import CostFacts

DoneReason = Literal["stop", "length", "content_filter", "load"]


class OllamaError(msgspec.Struct, kw_only=True):
    """A refusal or a failure, in one sentence."""

    error: str


class OllamaLogprob(msgspec.Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int] | None


class OllamaLogprobs(OllamaLogprob, kw_only=True):
    top_logprobs: list[OllamaLogprob]


class OllamaCallMade(msgspec.Struct, kw_only=True):
    index: int
    name: str
    arguments: dict[str, Any]


class OllamaToolCall(msgspec.Struct, kw_only=True):
    function: OllamaCallMade


class OllamaSaid(msgspec.Struct, kw_only=True):
    """What a model said."""

    role: Literal["assistant"]
    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[OllamaToolCall] | UnsetType = UNSET


class _Ended(msgspec.Struct, kw_only=True):
    """Durations are nanoseconds."""

    model: str
    created_at: str
    done: bool
    done_reason: DoneReason
    total_duration: int
    load_duration: int
    prompt_eval_duration: int
    eval_duration: int
    prompt_eval_count: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    logprobs: list[OllamaLogprobs] | UnsetType = UNSET
    cost: CostFacts | UnsetType = UNSET


class OllamaChatAnswer(_Ended, kw_only=True):
    message: OllamaSaid


class OllamaGenerateAnswer(_Ended, kw_only=True):
    response: str
    thinking: str | UnsetType = UNSET


class OllamaVectors(msgspec.Struct, kw_only=True):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int
    cost: CostFacts | UnsetType = UNSET


class OllamaVector(msgspec.Struct, kw_only=True):
    embedding: list[float]
    cost: CostFacts | UnsetType = UNSET


class OllamaDetails(msgspec.Struct, kw_only=True):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class _Named(msgspec.Struct, kw_only=True):
    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails


class OllamaTag(_Named, kw_only=True):
    modified_at: str


class OllamaTags(msgspec.Struct, kw_only=True):
    models: list[OllamaTag]


class OllamaProcess(_Named, kw_only=True):
    size_vram: int
    context_length: int
    expires_at: str


class OllamaProcesses(msgspec.Struct, kw_only=True):
    models: list[OllamaProcess]


class OllamaShown(msgspec.Struct, kw_only=True):
    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class OllamaPulled(msgspec.Struct, kw_only=True):
    status: Literal["success"]


class OllamaVersion(msgspec.Struct, kw_only=True):
    version: str
