"""[safety], [reviews] and [audit]: what texts may say, the humans who decide about them, and the record of both."""

from typing import Annotated, Literal

from msgspec import Meta

from llmhost.config.schema.section import Positive, Section

GuardForm = Literal[
    "auto",
    "chat",
    "classifier",
    "granite-guardian",
    "llama-guard-3",
    "llama-guard-4",
    "qwen3guard",
    "shieldgemma",
]
"""Ways to ask a model what is harmful in a text, as `safety/guards/` has them."""


class SafetySettings(Section, frozen=True):
    """[safety]: rules on text, in and out. Plugins are asked after them."""

    block: tuple[str, ...] = ()
    """Categories and rules of the pack that refuse a prompt and end an answer: "secret", "pii.card", "injection"."""
    redact: tuple[str, ...] = ()
    """Those whose finds are replaced by the rule's name, such as [card], before the model or the client sees them."""
    warn: tuple[str, ...] = ()
    """Those whose finds pass, and are told in a header and written down."""
    review: tuple[str, ...] = ()
    """Those whose finds wait for a human, as with `block` until one approves them."""
    blocked_words: tuple[str, ...] = ()
    """Whole words, whatever their case, that end a request with an error or an answer with content_filter."""
    blocked_patterns: tuple[str, ...] = ()
    """Regular expressions with the same effect. Matched against each message, and against a window of the answer."""
    max_prompt_chars: Positive | None = None
    """Longer prompts are refused before they are tokenised; any length passes when absent."""
    check_output: bool = True
    """Also apply the rules to answers. Off, only prompts are checked."""
    window_chars: Annotated[int, Meta(ge=16, le=65536)] = 256
    """While rules or plugins judge answers, text is held back until this much of it is judged at once."""
    guard: str | None = None
    """Name of a model of [models] that judges beside the rules; what it finds blocks unless a list above has it."""
    guard_directions: tuple[Literal["input", "output"], ...] = ("input", "output")
    """What it judges: prompts, answers, or both."""
    guard_timeout_ms: Annotated[int, Meta(ge=1, le=600_000)] = 2_000
    """How long its verdict may take."""
    guard_fails_open: bool = False
    """Let text pass that it could not judge in time; off, such text is refused."""
    guard_threshold: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """How sure it has to be to have found something."""
    keep_prompts: Literal["never", "found", "all"] = "never"
    """Prompts that the audit log keeps, encrypted: none, those in which something was found, or all."""
    prompt_days: Annotated[int, Meta(ge=1, le=3650)] = 30
    """Days until a kept prompt is erased."""
    keep_fails_open: bool = False
    """Let text pass whose prompt the disk takes too long for, with a row that says so; off, such text is refused."""


class ReviewSettings(Section, frozen=True):
    """[reviews]: texts that policies leave to humans."""

    due_minutes: Positive = 60
    """When somebody should have decided: who comes later is overdue."""
    expire_hours: Annotated[int, Meta(ge=1, le=8760)] = 72
    """When a text that nobody decided on expires, which refuses it."""
    claim_minutes: Annotated[int, Meta(ge=1, le=1440)] = 15
    """How long a reviewer's claim keeps others away."""
    four_eyes: bool = False
    """Two different reviewers have to agree; where they don't, the operator or an admin decides."""
    ruling_hours: Annotated[int, Meta(ge=1, le=8760)] = 168
    """How long a decision holds for exactly the same text of the same organisation."""
    sample_share: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Part of the texts that is looked at afterwards where the policy's mode is `release`."""
    original_days: Annotated[int, Meta(ge=1, le=3650)] = 7
    """Days until the encrypted original is erased, and with it what was held: calls and answers."""
    redacted_days: Annotated[int, Meta(ge=1, le=3650)] = 90
    """Days until the redacted text is erased, too. What was decided stays, without a text."""
    max_pending: Positive = 10_000
    """Texts that may wait at the same time; while they do, more are refused with 503."""
    retry_after_s: Positive = 30
    """When callers are told to ask again for what is held."""
    webhook: str | None = None
    """URL to which events of reviews are posted, signed: "https://example.com/reviews"."""
    webhook_private: bool = False
    """Post to loopback and private addresses, too; off, only to those of the Internet."""
    webhook_timeout_s: Annotated[float, Meta(gt=0, le=60)] = 10.0
    """How long one try may take."""


class AuditSettings(Section, frozen=True):
    """[audit]: the record of what was screened, and of what operators and admins did."""

    keep_days: Annotated[int, Meta(ge=1, le=36_500)] = 400
    """Days after which rows are deleted, unless their organisation's policy says otherwise; the chain stays whole."""
    each_allowed: bool = False
    """Write down each text that nobody objected to; off, such texts are counted by the minute."""
