"""What each stage fills in about one request. One context has one owner: the processor that runs it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmhost.core.errors import LlmhostError
from llmhost.core.output import FinishReason, Outcome, Usage
from llmhost.core.request import Caller, GenerationRequest
from llmhost.cost.pricing import Price
from llmhost.deploy.deployment import Deployment
from llmhost.deploy.replica import Replica
from llmhost.tenants.limits import Allowance


@dataclass(slots=True)
class RequestContext:
    """Facts about one request, from its arrival to its log line."""

    request: GenerationRequest
    bearer: str | None
    headers: Mapping[str, str]
    """For `identify_caller` only; never logged, never shown to other hooks."""
    arrived_ns: int
    arrived_utc_ns: int
    caller: Caller | None = None
    deployment: Deployment | None = None
    prompts: tuple[tuple[int, ...], ...] = ()
    max_new_tokens: int = 0
    """Per choice: what was asked for, or the room that is left."""
    longest_tokens: int = 0
    allowance: Allowance | None = None
    price: Price | None = None
    replica: Replica | None = None
    submitted_ns: int | None = None
    first_token_ns: int | None = None
    ended_ns: int | None = None
    outcome: Outcome | None = None
    error: LlmhostError | None = None
    finish_reason: FinishReason | None = None
    usage: Usage = field(default_factory=Usage)
    amount_nano: int = 0

    @property
    def model(self) -> str:
        """`name@version` once resolved; before, the name as asked."""
        if self.deployment is None:
            return self.request.model
        return str(self.deployment.entry.ref)

    @property
    def known_caller(self) -> Caller:
        assert self.caller is not None, "this stage runs after authentication"
        return self.caller

    @property
    def known_deployment(self) -> Deployment:
        assert self.deployment is not None, "this stage runs after resolution"
        return self.deployment
