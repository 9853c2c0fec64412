"""Stage 7: turn a resolved request into sequences, and start them."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from llmhost.core.ids import new_seed
from llmhost.core.ports import Clock
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import SequenceSpec
from llmhost.cost.under_way import INPUT
from llmhost.observe.metrics import Metrics
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.decide import decided_specs
from llmhost.pipeline.generation import Bear, Generation, Settle, nobody
from llmhost.pipeline.pool import pooled_specs
from llmhost.pipeline.screen import ScreenStage

SEED_STRIDE = 0x9E3779B97F4A7C15
SEED_MASK = 2**63 - 1


class Execute:
    """Turns a resolved request into sequences."""

    def __init__(
        self, screen: ScreenStage, clock: Clock, metrics: Metrics, bear: Bear = nobody
    ) -> None:
        self._screen = screen
        self._clock = clock
        self._metrics = metrics
        self._bear = bear

    def again(
        self,
        context: RequestContext,
        settle: Settle,
        spec: SequenceSpec,
        then: Callable[[Generation], None],
    ) -> Generation:
        """As calling it, of a request with one choice that is as one before it, but for its prompt, and whose sequence
        was `spec`; `then` is called when it has ended."""
        generation = self._begun(context, settle, then)
        seed, spending = context.request.sampling.seed, context.spending
        (prompt,) = context.known_terms.prompts
        mine = spec.anew(
            context.request.request_id,
            prompt=prompt,
            max_new_tokens=_most_tokens(context, prompt),
            seed=spec.seed if seed is not None else new_seed() & SEED_MASK,
            arrival_ns=context.arrived_ns,
            held_tokens=None if spending is None else spending.first_tokens or None,
        )
        try:
            generation.submit(0, mine, self._screen.output(context))
        except BaseException:
            generation.detach()
            raise
        return generation

    def _begun(
        self,
        context: RequestContext,
        settle: Settle,
        then: Callable[[Generation], None] | None = None,
    ) -> Generation:
        context.submitted_ns = self._clock.monotonic_ns()
        if context.slot is not None:
            context.slot.count(INPUT, context.known_terms.prompt_tokens)
        return Generation(context, self._clock, settle, self._metrics.gaps, self._bear, then)

    def __call__(self, context: RequestContext, settle: Settle) -> Generation:
        generation = self._begun(context, settle)
        if context.request.only_loads:
            generation.end_at_once()
            return generation
        try:
            if (specs := _silent(context)) is not None:
                for index, spec in enumerate(specs):
                    generation.submit(index, spec, None)
                return generation
            for index in range(len(context.prompts) * context.request.runs):
                spec = spec_of(context, index)
                generation.submit(index, spec, self._screen.output(context))
        except BaseException:
            generation.detach()
            raise
        return generation


def spec_of(context: RequestContext, index: int) -> SequenceSpec:
    """One choice as its engine takes it."""
    request, entry, terms = context.request, context.known_deployment.entry, context.known_terms
    assert context.replica is not None
    reading = context.reading
    prompt = terms.prompts[index // request.runs]
    seed = request.sampling.seed if request.sampling.seed is not None else new_seed()
    eos = frozenset() if request.ignore_eos else context.replica.tokenizer.eos_ids
    room = context.longest_tokens - len(prompt)
    return SequenceSpec(
        request_id=request.request_id,
        index=index,
        model=entry.ref,
        prompt=prompt,
        sampling=_sampling(context, index),
        seed=(seed + index * SEED_STRIDE) & SEED_MASK,
        max_new_tokens=_most_tokens(context, prompt),
        held_tokens=None if context.spending is None else context.spending.first_tokens or None,
        min_new_tokens=request.min_tokens,
        stop=request.stop,
        tells_stop=request.tells_stop,
        shown=context.shown,
        predicted=terms.predicted[: max(room, 0)],
        thoughts=None if reading is None else reading.thought_ids,
        begins_with_thoughts=reading is not None and reading.begun,
        stop_token_ids=eos | terms.stop_ids,
        grammar=context.grammar,
        priority=request.priority,
        arrival_ns=context.arrived_ns,
        deadline_ns=context.deadline_ns,
        tenant=context.known_caller.org,
        cache_scope=_cache_scope(context),
        adapter=context.adapter_hold.key if context.adapter_hold is not None else None,
    )


def _most_tokens(context: RequestContext, prompt: tuple[int, ...]) -> int:
    """That one choice may have."""
    room, wanted = context.longest_tokens - len(prompt), context.request.max_tokens
    return room if wanted is None else min(wanted, room)


def _silent(context: RequestContext) -> Iterator[SequenceSpec] | None:
    """The sequences of a request that draws no token; None where it does."""
    if context.poolings:
        return pooled_specs(context)
    return decided_specs(context, _cache_scope(context)) if context.request.questions else None


def _sampling(context: RequestContext, index: int) -> Sampling:
    request, terms = context.request, context.known_terms
    if index % request.runs:
        return _of_answer(terms.sampling)
    if (
        request.warms
    ):  # who wants to know of the last token alone has all before it computed, or found
        last = len(terms.prompts[index // request.runs]) - 1
        return replace(terms.sampling, prompt_logprobs=0, prompt_logprobs_from=last)
    return terms.sampling


def _of_answer(sampling: Sampling) -> Sampling:
    """Of all choices of a prompt the first reports what is thought of the prompt; the others may share its blocks."""
    return sampling if sampling.prompt_logprobs is None else replace(sampling, prompt_logprobs=None)


def _cache_scope(context: RequestContext) -> str:
    """Who may share computed prompt blocks."""
    scope = context.known_caller.scope(context.known_deployment.entry.spec.cache_scope)
    salt = context.request.cache_salt
    return f"{scope}\0{salt}" if salt else scope
