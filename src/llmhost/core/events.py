"""Frozen facts about what has happened, for observers. None of them holds prompt or answer text."""

from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from llmhost.core.caller import Caller
from llmhost.core.output import Outcome, Usage


class SafetyNote(NamedTuple):
    """What was decided about a prompt or an answer that did not just pass."""

    action: str
    """warn, redact, review or block."""
    rule: str | None
    review_id: str | None


class RequestEnded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request, however it ended."""

    request_id: str
    client_request_id: str | None
    utc_ns: int
    kind: str
    model: str
    """`name@version`, or the name as asked when none was found."""
    caller: Caller | None
    outcome: Outcome
    status: int
    code: str | None
    """Error code; None for an answer."""
    finish_reason: str | None
    usage: Usage
    amount_nano: int
    queue_ms: float
    ttft_ms: float | None
    total_ms: float
    stream: bool
    adapter: str | None = None
    """Name of the LoRA adapter that answered."""
    run_id: str | None = None
    """What the caller says the request is part of: one of its runs, sessions or jobs."""
    cost_nano: int = 0
    """What it cost the operator; 0 where no [costs] are configured."""
    safety: SafetyNote | None = None
    """The strictest decision on its texts; None where all of them passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentChanged:
    """A deployment moved to another state."""

    model: str
    state: str
    reason: str
    utc_ns: int
    took_s: float | None = None
    bytes: int | None = None
    predicted_bytes: int | None = None
    """Of a loaded model's weights, from the headers of its files."""
    measured_bytes: int | None = None
    """What loading them took."""
