"""Ollama's request bodies as they are sent: every field that this server knows, with its type and its range.

What fields mean together is `wire`'s. Every field may be null, which means absent.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llmhost.api.bodies import (
    MAX_MODEL_CHARS,
    MAX_TIMEOUT_MS,
    Penalty,
    Probability,
    Repetition,
    Temperature,
    TopLogprobs,
)
from llmhost.api.loose import NULL, Raw

Model = Annotated[str, Meta(max_length=MAX_MODEL_CHARS)]
Think = bool | Literal["low", "medium", "high"]


class OllamaOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn, and what an operator decides here: how a model is loaded."""

    temperature: Temperature | None = None
    top_k: int | None = None
    top_p: Probability | None = None
    min_p: Probability | None = None
    seed: int | None = None
    num_predict: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: Repetition | None = None
    repeat_last_n: int | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    num_ctx: Annotated[int, Meta(ge=1)] | None = None
    typical_p: float | None = None
    tfs_z: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    penalize_newline: bool | None = None
    num_keep: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    numa: bool | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    logits_all: bool | None = None
    vocab_only: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    embedding_only: bool | None = None


class OllamaBody(msgspec.Struct, frozen=True, kw_only=True):
    """What all routes that ask a model share; the last four are not Ollama's, and mean what they do elsewhere."""

    model: Model | None = None
    options: OllamaOptions | None = None
    keep_alive: Raw = NULL
    priority: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    timeout_ms: Annotated[int, Meta(ge=1, le=MAX_TIMEOUT_MS)] | None = None
    cache_salt: Annotated[str, Meta(max_length=128)] | None = None
    include_cost: bool | None = None


class AnswerBody(OllamaBody, frozen=True, kw_only=True):
    """What answers share."""

    stream: bool | None = None
    format: Raw = NULL
    think: Think | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    truncate: bool | None = None
    shift: bool | None = None


class OllamaMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Raw = NULL
    tool_calls: Raw = NULL
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaCalled(msgspec.Struct, frozen=True):
    """Arguments are an object, unlike OpenAI's."""

    name: str
    arguments: Raw = NULL


class OllamaCall(msgspec.Struct, frozen=True):
    function: OllamaCalled
    id: str | None = None


class OllamaChat(AnswerBody, frozen=True, kw_only=True):
    """POST /api/chat."""

    messages: list[OllamaMessage] | None = None
    tools: Raw = NULL


class OllamaGenerate(AnswerBody, frozen=True, kw_only=True):
    """POST /api/generate."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: str | None = None
    template: str | None = None
    context: Raw = NULL
    images: Raw = NULL
    width: int | None = None
    height: int | None = None
    steps: int | None = None


class OllamaEmbed(OllamaBody, frozen=True, kw_only=True):
    """POST /api/embed."""

    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None


class OllamaEmbeddings(OllamaBody, frozen=True, kw_only=True):
    """POST /api/embeddings, which came before."""

    prompt: str | None = None


class OllamaShow(msgspec.Struct, frozen=True, kw_only=True):
    """POST /api/show; `name` is an older word for the model."""

    model: Model | None = None
    name: Model | None = None
    verbose: Any = None


class OllamaPull(msgspec.Struct, frozen=True, kw_only=True):
    """POST /api/pull; `name` is an older word for the model."""

    model: Model | None = None
    name: Model | None = None
    stream: bool | None = None
    insecure: Any = None
