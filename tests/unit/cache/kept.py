"""Answers and stores for the tests of the cache."""

from pathlib import Path
from typing import Any

from llmhost.cache.answer import Answer, Part
from llmhost.cache.disk import Disk
from llmhost.cache.keys import Keys
from llmhost.cache.memory import Memory
from llmhost.cache.store import AnswerStore
from llmhost.core.output import FinishReason

KEYS = Keys(b"k" * 32)
HOUR_S = 3600.0


def answer(text: str = "well", **facts: Any) -> Answer:
    part = Part(0, text, (1, 2), FinishReason.STOP, None, (3, 2, 0))
    known: dict[str, Any] = {
        "parts": (part,),
        "finish_reason": FinishReason.STOP,
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "reasoning_tokens": 0,
        "stored_ns": 1_000,
        "model": "m@1",
        "scope": "org:acme",
    }
    return Answer(**{**known, **facts})


def key(model: str = "m@1", org: str | None = "acme", number: int = 0) -> str:
    """As `Keys.of_tokens` makes them."""
    return f"{KEYS.model_mark(model)}.{KEYS.mark_of_org(org)}.{number:048x}"


def store(folder: Path | None = None, most_bytes: int = 2**20) -> AnswerStore:
    disk = None if folder is None else Disk(folder, KEYS, 2**24)
    return AnswerStore(Memory(most_bytes), disk, KEYS)
