"""Prompts that a policy has the audit log keep: encrypted beside their rows, for some days.

A row tells the digest of what is sealed and nothing of the text, so that it goes on being what was recorded when the
text has been erased.
"""

import hashlib
from collections.abc import Callable

from llmhost.safety.sealed import OVERHEAD_BYTES, Seal
from llmhost.safety.verdict import Screening
from llmhost.storage.audit import SealedText

MOST_BYTES = 256 * 1024
"""Of a longer prompt the beginning is kept."""
DAY_NS = 86_400 * 10**9
_PART = "prompt"


def most_bytes_of(prompt: str) -> int:
    """What a prompt takes at most as it is kept."""
    return min(len(prompt) * 4, MOST_BYTES) + OVERHEAD_BYTES


class KeptPrompts:
    """Seals and opens them with a node's key, which is made with the first."""

    def __init__(self, secret: Callable[[], bytes]) -> None:
        self._secret = secret
        self._made: Seal | None = None

    @property
    def _seal(self) -> Seal:
        if self._made is None:
            self._made = Seal(self._secret())
        return self._made

    def sealed(self, screening: Screening) -> tuple[SealedText, dict[str, object]] | None:
        """The text as it is kept, and what its row tells of it; None where none is to be kept."""
        if screening.prompt is None:
            return None
        raw = screening.prompt.encode("utf-8", "replace")
        text = raw[:MOST_BYTES].decode("utf-8", "ignore").encode()
        sealed = self._seal.close(screening.request_id, _PART, text)
        ends_ns = screening.at_ns + screening.prompt_days * DAY_NS
        told: dict[str, object] = {
            "sha256": hashlib.sha256(sealed).hexdigest(),
            "ends_at": ends_ns // 10**9,
        }
        if len(text) < len(raw):
            told["is_cut"] = True
        return SealedText(sealed, ends_ns), told

    def opened(self, request_id: str, kept: SealedText) -> str | None:
        """None where another node has sealed it."""
        raw = self._seal.open(request_id, _PART, kept.sealed)
        return None if raw is None else raw.decode()
