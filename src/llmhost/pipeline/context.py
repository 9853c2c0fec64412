"""What each stage fills in about one request. One context has one owner: the processor that runs it."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from llmhost.core.caller import Caller
from llmhost.core.errors import LlmhostError
from llmhost.core.events import RequestEnded, SafetyNote
from llmhost.core.grammar import GrammarSpec
from llmhost.core.output import Delta, FinishReason, Outcome, Usage
from llmhost.core.ports import Tokenizer
from llmhost.core.request import GenerationRequest
from llmhost.core.sequence import Pooling
from llmhost.cost.breakdown import Breakdown
from llmhost.cost.pools import Ticket
from llmhost.cost.pricing import Price
from llmhost.deploy.adapters import AdapterHold
from llmhost.deploy.catalogue import Served
from llmhost.deploy.deployment import Deployment
from llmhost.deploy.replica import Replica, together
from llmhost.observe.logs import request_id
from llmhost.pipeline.cache_use import CacheUse
from llmhost.pipeline.deferral import Deferral
from llmhost.pipeline.reading import Reading
from llmhost.pipeline.spending import Spending
from llmhost.pipeline.terms import Terms
from llmhost.safety.verdict import Action, Screening
from llmhost.storage.journal import Slot
from llmhost.tenants.limiter import Pass
from llmhost.tenants.refusals import NO_ALLOWANCES, Allowances

NOTHING_USED = Usage()


class RequestContext(msgspec.Struct, eq=False):
    """Facts about one request, from its arrival to its log line. A struct is made and copied in a tenth of the time."""

    request: GenerationRequest
    bearer: str | None
    headers: Mapping[str, str]
    """For `identify_caller` only; never logged, never shown to other hooks."""
    arrived_ns: int
    arrived_utc_ns: int
    caller: Caller | None = None
    run_id: str | None = None
    """The caller's run or session that this is part of, from `x-llmhost-run`."""
    deployment: Deployment | None = None
    tokenizer: Tokenizer | None = None
    terms: Terms | None = None
    reading: Reading | None = None
    """How its answers are read; None where all of them is content."""
    max_new_tokens: int = 0
    """Per choice: what was asked for, or the room that is left."""
    longest_tokens: int = 0
    limits_pass: Pass | None = None
    """What it holds of limits while it runs; None when nothing limits it."""
    stood: Allowances = NO_ALLOWANCES
    """How limits stood when it was let in, of one that was answered in the same turn and holds nothing of them."""
    price: Price | None = None
    spending: Spending | None = None
    """What it holds of budgets; None when there is none to keep."""
    deferral: Deferral | None = None
    """Gets its entry in place of the ledger."""
    slot: Slot | None = None
    """Its place in the journal, from its admission to its entry."""
    screening: Screening | None = None
    """The strictest decision on its prompt and its answers; None where nobody judged them."""
    has_findings: bool = False
    """Something was found in its texts, or a guard had no answer about some, and it was let pass: by a policy, or by a
    reviewer for a time."""
    verdict: "asyncio.Task[Screening] | None" = None
    """What a guard says of its prompt, while it runs already: nothing of the answer may leave before. Raises why it is
    refused."""
    cache: CacheUse | None = None
    """Its part in the cache; None where it has none and said nothing of it."""
    is_redacted: bool = False
    """Its prompt is another than was sent."""
    said: list[Delta] | None = None
    """All that was answered, while it is decided whether to keep it."""
    replica: Replica | None = None
    adapter: Served | None = None
    """The LoRA adapter that was asked for, if one was."""
    adapter_hold: AdapterHold | None = None
    submitted_ns: int | None = None
    first_token_ns: int | None = None
    ended_ns: int | None = None
    outcome: Outcome | None = None
    error: LlmhostError | None = None
    finish_reason: FinishReason | None = None
    usage: Usage = NOTHING_USED
    amount_nano: int = 0
    full_price: Price | None = None
    """What would hold if the answer were no kept one."""
    discount_nano: int = 0
    """So much less is paid than without the cache."""
    budget_remaining_nano: int | None = None
    """What is left in the tightest budget over it, after all that is held; None where none is over it."""
    is_waived: bool = False
    """Its caller left before its prompt was judged: nobody could have read any of it, and nobody pays."""
    has_files: bool = False
    """It names files of its caller, whose text is in it now, and may be another one or none the next time."""
    held_by: str | None = None
    """The review that its whole answer waits for."""
    can_wait: bool = False
    """Its whole answer may come to wait for a reviewer: what is there before its end may be what nobody shall see."""
    stop: str | None = None
    """What ended the answer before its own end, such as `budget`; None where nothing did."""
    ticket: Ticket | None = None
    """Its stay in flight, which bears a part of what the host costs."""
    costs: Breakdown | None = None
    """What it has cost the operator, once it has ended."""
    may_see_costs: bool = True
    """Whether its caller may hear of them."""
    ended: RequestEnded | None = None
    """What `event` says, once it has been asked; None again when something of it changes."""

    @property
    def is_touched(self) -> bool:
        """Safety has changed its prompt, found anything in its prompt or answer, or could not judge one of them: it is
        kept for nobody."""
        found = self.screening
        is_noted = found is not None and found.decision.action is not Action.ALLOW
        return self.is_redacted or self.has_findings or is_noted

    @property
    def grammar(self) -> GrammarSpec | None:
        """What the answer is held to, or its calls."""
        if self.request.grammar is not None or self.reading is None:
            return self.request.grammar
        return self.reading.grammar

    @property
    def shown(self) -> tuple[str, ...]:
        """Special tokens that are told as text."""
        if self.request.shows_special and self.tokenizer is not None:
            return self.tokenizer.marks.special
        return () if self.reading is None else self.reading.shown

    @property
    def model(self) -> str:
        """`name@version` once resolved; before, the name as asked."""
        if self.deployment is None:
            return self.request.model
        return self.deployment.entry.label

    @property
    def ran_from(self) -> str | None:
        """The mark of the files that what answers it was read from; None where nothing does."""
        if self.replica is None:
            return None
        hold = self.adapter_hold
        return together(self.replica.mark, None if hold is None else hold.key)

    if TYPE_CHECKING:  # what they are is said below the class

        @property
        def known_caller(self) -> Caller:
            """In stages after authentication."""

        @property
        def known_deployment(self) -> Deployment:
            """In stages after resolution, as the next."""

        @property
        def known_terms(self) -> Terms: ...

    @property
    def allowances(self) -> Allowances:
        return self.stood if self.limits_pass is None else self.limits_pass.allowances

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        return self.known_terms.prompts

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """How each prompt is pooled, in a request for vectors or scores."""
        return self.known_terms.poolings

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts together; what they share counts once."""
        return self.known_terms.prompt_tokens

    @property
    def choices(self) -> int:
        """Answers in all; none where no text is asked for."""
        terms, request = self.known_terms, self.request
        return 0 if terms.poolings or request.questions else len(terms.prompts) * request.runs

    @property
    def deadline_ns(self) -> int | None:
        """On the clock of `arrived_ns`."""
        timeout_ms = self.request.timeout_ms
        return None if timeout_ms is None else self.arrived_ns + timeout_ms * 1_000_000

    def note_screening(self, screening: Screening) -> None:
        self.has_findings = self.has_findings or bool(screening.findings)
        known = self.screening
        if known is None or screening.decision.action > known.decision.action:
            self.screening = screening

    def let_go(self) -> None:
        """The request has ended: its adapter may make room for others, and no guard need judge it. Idempotent."""
        if self.verdict is not None:
            self.verdict.cancel()
        if self.adapter_hold is not None:
            self.adapter_hold.let_go()

    def event(self) -> RequestEnded:
        """How it ended, as a fact for ledger, metrics, analytics and observers."""
        if self.ended is None:
            self.ended = self._event()
        return self.ended

    def _event(self) -> RequestEnded:
        request, error, deployment = self.request, self.error, self.deployment
        came_ns, begun_ns, first_ns = self.arrived_ns, self.submitted_ns, self.first_token_ns
        assert self.outcome is not None and self.ended_ns is not None, "it has not ended"
        return RequestEnded(
            request_id=request.request_id,
            client_request_id=request.client_request_id,
            utc_ns=self.arrived_utc_ns,
            kind=str(request.kind),
            model=request.model if deployment is None else deployment.entry.label,
            caller=self.caller,
            outcome=self.outcome,
            status=200 if error is None else error.status,
            code=None if error is None else error.code or type(error).__name__,
            finish_reason=self.finish_reason,
            usage=self.usage,
            amount_nano=self.amount_nano,
            queue_ms=0.0 if begun_ns is None else (begun_ns - came_ns) / 1e6,
            ttft_ms=None if first_ns is None else (first_ns - came_ns) / 1e6,
            total_ms=(self.ended_ns - came_ns) / 1e6,
            stream=request.stream,
            adapter=self.adapter.adapter if self.adapter is not None else None,
            run_id=self.run_id,
            cost_nano=0 if self.costs is None else self.costs.total_nano,
            safety=None if self.screening is None else _safety_of(self.screening),
        )


for _name in ("caller", "deployment", "terms"):
    # The slots themselves: they are read some thirty times for each request, and a property is a call.
    setattr(RequestContext, f"known_{_name}", vars(RequestContext)[_name])


def each_named(contexts: Iterable[RequestContext]) -> Iterator[RequestContext]:
    """One after the other, with what is logged meanwhile under its id."""
    for context in contexts:
        request_id.set(context.request.request_id)
        yield context


def _safety_of(screening: Screening) -> SafetyNote | None:
    if screening.decision.action is Action.ALLOW:
        return None
    decision = screening.decision
    rule = None if decision.finding is None else decision.finding.rule
    return SafetyNote(decision.action.name.lower(), rule, screening.review_id)
