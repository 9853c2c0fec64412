"""Stage 8: keep the answer for those who ask again. The counterpart of `cached`.

Kept is what was answered whole: nothing that was refused, failed, left behind, cut by a budget or a deadline, or that
safety warned of, changed, referred or stopped, or had not judged when its caller left.
"""

from llmhost.cache.answer import Answer, parts_of
from llmhost.cache.response_cache import ResponseCache
from llmhost.core.output import FinishReason, Outcome
from llmhost.core.ports import Clock
from llmhost.pipeline.cache_use import CacheUse, Status
from llmhost.pipeline.cached import Cached
from llmhost.pipeline.context import RequestContext

_ENDS = (FinishReason.STOP, FinishReason.LENGTH)


class Store:
    def __init__(self, cache: ResponseCache, cached: Cached, clock: Clock) -> None:
        self._cache = cache
        self._cached = cached
        self._clock = clock

    def __call__(self, context: RequestContext) -> None:
        """However the request ended: those who wait for it go on."""
        if (use := context.cache) is None:
            return
        try:
            if use.stores and not use.is_hit and use.key and _is_whole(context, use):
                self._keep(context, use)
        finally:
            context.said = None
            self._cached.landed(context)

    def count(self, context: RequestContext, size_bytes: int | None = None) -> None:
        """Once its amount is known; `size_bytes` is its kept answer's, where that is known."""
        if (use := context.cache) is None or context.outcome is not Outcome.ANSWERED:
            return
        counts = self._cache.stats.of(context.known_caller.org, context.model)
        if use.status is Status.BYPASS:
            counts.bypassed += 1
        elif use.status is Status.MISS:
            counts.misses += 1
        else:
            counts.joined += use.status is Status.JOINED
            counts.hits += use.status is not Status.JOINED
            counts.stale += use.status is Status.STALE
            counts.semantic += use.status is Status.SEMANTIC
            counts.saved_tokens += context.usage.total_tokens
            counts.discount_nano += context.discount_nano
            if use.answer is not None:
                counts.saved_engine_ns += use.answer.engine_ns
                counts.saved_cost_nano += use.answer.cost_nano
                if use.kind is not None and use.status is not Status.SEMANTIC:
                    self._cache.note(use.kind, use.key, use.answer, size_bytes)

    def _keep(self, context: RequestContext, use: CacheUse) -> None:
        parts, usage = parts_of(context.said or ()), context.usage
        if parts is None or context.finish_reason is None:
            return
        answer = Answer(
            parts=parts,
            finish_reason=context.finish_reason,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            stored_ns=self._clock.utc_ns(),
            engine_ns=usage.engine_ns,
            cost_nano=usage.cost_nano,
            model=use.model,
            scope=use.scope,
            signature="" if use.kind is None else use.kind.signature,
            tag=use.tag,
            priority=use.priority,
            suits_alike=use.meaning is not None,
        )
        keeps_s = max(self._cache.settings.max_ttl_s, use.ttl_s) + use.stale_s
        is_kept = self._cache.keep(
            use.key, answer, keeps_s=keeps_s, began_ns=context.arrived_utc_ns
        )
        self._cache.stats.of(context.known_caller.org, context.model).stored += is_kept
        if is_kept:
            self._cached.semantic.keep(context, use, answer.stored_ns)
        if is_kept and use.kind is not None:
            self._cache.note(use.kind, use.key, answer)


def _is_whole(context: RequestContext, use: CacheUse) -> bool:
    return (
        context.ran_from == use.files  # it may have been loaded since, from other files
        and context.outcome is Outcome.ANSWERED
        and context.error is None
        and context.stop is None
        and not context.is_touched
        and context.held_by is None
        and not context.is_waived
        and context.finish_reason in _ENDS
    )
