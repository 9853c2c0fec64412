"""Answers requests for the model "auto": short prompts with a small model, long ones with a large one."""

from llmhost import hookimpl
from llmhost.core.request import GenerationRequest

NAME = "auto"
SHORT = "small"
LONG = "large"
LIMIT_CHARS = 2_000


@hookimpl
def route_request(request: GenerationRequest, candidates: tuple[str, ...]) -> str | None:
    if request.model != NAME:
        return None  # asked for by name: not ours to change
    wanted = SHORT if len(request.text) <= LIMIT_CHARS else LONG
    return wanted if wanted in candidates else None
