"""Ollama's routes that are plain ASGI, and what the others answer."""

from collections.abc import Mapping
from typing import Any

from llmhost.api.ollama.bodies import OllamaChat, OllamaEmbed, OllamaEmbeddings, OllamaGenerate
from llmhost.api.openapi.ollama_answers import (
    OllamaChatAnswer,
    OllamaGenerateAnswer,
    OllamaProcesses,
    OllamaPulled,
    OllamaShown,
    OllamaTags,
    OllamaVector,
    OllamaVectors,
    OllamaVersion,
)
from llmhost.api.openapi.operation import IDEMPOTENCY, LINES, Operation

OLLAMA = (
    Operation(
        paths=("/api/chat",),
        summary="Answer a chat, in Ollama's words",
        about="Without messages the model is loaded and nothing is said.",
        tag="ollama",
        body=OllamaChat,
        required=("model",),
        answer=OllamaChatAnswer,
        streams=True,
        stream_type=LINES,
        parameters=(IDEMPOTENCY,),
        is_ollama=True,
    ),
    Operation(
        paths=("/api/generate",),
        summary="Answer a prompt, in Ollama's words",
        about="Without a prompt the model is loaded and nothing is said.",
        tag="ollama",
        body=OllamaGenerate,
        required=("model",),
        answer=OllamaGenerateAnswer,
        streams=True,
        stream_type=LINES,
        parameters=(IDEMPOTENCY,),
        is_ollama=True,
    ),
    Operation(
        paths=("/api/embed",),
        summary="Vectors of texts, in Ollama's words",
        tag="ollama",
        body=OllamaEmbed,
        required=("model", "input"),
        answer=OllamaVectors,
        parameters=(IDEMPOTENCY,),
        is_ollama=True,
    ),
    Operation(
        paths=("/api/embeddings",),
        summary="A vector of a text, in Ollama's older words",
        tag="ollama",
        body=OllamaEmbeddings,
        required=("model", "prompt"),
        answer=OllamaVector,
        parameters=(IDEMPOTENCY,),
        is_ollama=True,
    ),
)

OLLAMA_TOLD: Mapping[str, Any] = {
    "/api/tags": OllamaTags,
    "/api/ps": OllamaProcesses,
    "/api/show": OllamaShown,
    "/api/pull": OllamaPulled,
    "/api/version": OllamaVersion,
}
"""By path."""
