"""What an operator sees of the cache and may do with it, on a running node or a stopped one."""

from dataclasses import dataclass
from typing import Any

import msgspec

from llmhost.api.admin_tenants import PAGE_ROWS, page_of
from llmhost.cache.policy import Policy
from llmhost.cache.response_cache import ResponseCache
from llmhost.cache.stats import Counts
from llmhost.cache.store import Meant
from llmhost.core.errors import InvalidValue
from llmhost.core.units import nano_to_dollars


class CacheCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Since the node's start. `hit_rate` is of all requests that looked. Dollars are text, so that they stay exact."""

    hits: int
    joined: int
    stale: int
    semantic: int
    """Of the hits, answers to questions that were only alike."""
    semantic_checks: int
    """So many of those the model answered as well."""
    semantic_false: int
    """And so many of its answers said something else."""
    false_hit_rate: float | None
    """Of those that were checked."""
    misses: int
    bypassed: int
    stored: int
    hit_rate: float
    saved_tokens: int
    saved_gpu_s: float
    saved_cost_usd: str
    discount_usd: str


class CacheReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept, and what that has saved."""

    use: str
    memory_answers: int
    memory_bytes: int
    disk_answers: int
    disk_bytes: int
    evicted: int
    refused: int
    """Values on disk that this node did not write."""
    rebuilds: int
    is_disk_broken: bool
    policies: int
    policies_created: int
    policies_retired: int
    total: CacheCounts


class CacheStatsRow(CacheCounts, frozen=True, kw_only=True):
    """Of one organisation and model."""

    id: str
    org: str
    model: str
    min_similarity: float | None
    """What alike questions have to have by now; null where none has been asked."""
    is_semantic_stopped: bool
    """Too many answers to alike questions were false, however alike they were: none is given any more."""


class CacheStatsPage(msgspec.Struct, frozen=True, kw_only=True):
    """By organisation and model. The next page comes `after` `last_id`."""

    data: list[CacheStatsRow]
    has_more: bool
    last_id: str | None


class CachePolicyRow(msgspec.Struct, frozen=True, kw_only=True):
    """What was learnt of one kind of requests: `potential` is the share of them that repeat."""

    id: str
    org: str
    model: str
    form: str
    ttl_s: float
    priority: int
    potential: float
    uses: int


class CachePolicyPage(msgspec.Struct, frozen=True, kw_only=True):
    """By signature. The next page comes `after` `last_id`."""

    data: list[CachePolicyRow]
    has_more: bool
    last_id: str | None


class NewPurge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be forgotten. Several names must all be met; `everything` stands alone."""

    model: str | None = None
    org: str | None = None
    tag: str | None = None
    everything: bool = False


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """How many answers were forgotten."""

    purged: int


@dataclass(frozen=True, slots=True)
class CacheDesk:
    cache: ResponseCache

    async def report(self) -> CacheReport:
        cache = self.cache
        sizes, disk = await cache.store.sizes(), cache.store.disk
        return CacheReport(
            use=cache.settings.use,
            memory_answers=sizes.memory_answers,
            memory_bytes=sizes.memory_bytes,
            disk_answers=sizes.disk_answers,
            disk_bytes=sizes.disk_bytes,
            evicted=cache.store.memory.evicted,
            refused=0 if disk is None else disk.refused,
            rebuilds=0 if disk is None else disk.rebuilds,
            is_disk_broken=disk is not None and disk.is_broken,
            policies=len(cache.learner.policies()),
            policies_created=cache.learner.created,
            policies_retired=cache.learner.retired,
            total=CacheCounts(**_told(cache.stats.total())),
        )

    def stats(self, *, limit: int = PAGE_ROWS, after: str | None = None) -> CacheStatsPage:
        """Raises InvalidValue."""
        rows = [
            self._stats_row(org, model, counts) for org, model, counts in self.cache.stats.rows()
        ]
        page, has_more = page_of(rows, lambda row: row.id, limit, after)
        return CacheStatsPage(
            data=list(page), has_more=has_more, last_id=page[-1].id if page else None
        )

    def _stats_row(self, org: str, model: str, counts: Counts) -> CacheStatsRow:
        trust = self.cache.trusts.known(org, model)
        return CacheStatsRow(
            id=f"{org}/{model}",
            org=org,
            model=model,
            min_similarity=None if trust is None else round(trust.threshold, 4),
            is_semantic_stopped=trust is not None and trust.is_stopped,
            **_told(counts),
        )

    def policies(self, *, limit: int = PAGE_ROWS, after: str | None = None) -> CachePolicyPage:
        """Raises InvalidValue."""
        rows = [
            _policy_row(kind.org, kind.model, kind.form, policy)
            for kind, policy in self.cache.learner.policies()
        ]
        page, has_more = page_of(rows, lambda row: row.id, limit, after)
        return CachePolicyPage(
            data=list(page), has_more=has_more, last_id=page[-1].id if page else None
        )

    async def purge(self, wanted: NewPurge) -> Purged:
        """Raises InvalidValue where nothing is named, a name is empty, or everything and something are."""
        meant = Meant(model=wanted.model, org=wanted.org, tag=wanted.tag)
        if meant.is_all != wanted.everything or "" in (meant.model, meant.org, meant.tag):
            raise InvalidValue(
                "Name a 'model', an 'org' or a 'tag' to forget, or say 'everything' alone.",
                param="everything",
            )
        return Purged(purged=await self.cache.purge(meant))


def _told(counts: Counts) -> dict[str, Any]:
    return {
        "hits": counts.hits,
        "joined": counts.joined,
        "stale": counts.stale,
        "semantic": counts.semantic,
        "semantic_checks": counts.semantic_checks,
        "semantic_false": counts.semantic_false,
        "false_hit_rate": None
        if counts.false_hit_rate is None
        else round(counts.false_hit_rate, 6),
        "misses": counts.misses,
        "bypassed": counts.bypassed,
        "stored": counts.stored,
        "hit_rate": round(counts.hit_rate, 4),
        "saved_tokens": counts.saved_tokens,
        "saved_gpu_s": counts.saved_engine_ns / 1e9,
        "saved_cost_usd": nano_to_dollars(counts.saved_cost_nano),
        "discount_usd": nano_to_dollars(counts.discount_nano),
    }


def _policy_row(org: str, model: str, form: str, policy: Policy) -> CachePolicyRow:
    return CachePolicyRow(
        id=policy.signature,
        org=org,
        model=model,
        form=form,
        ttl_s=policy.ttl_s,
        priority=policy.priority,
        potential=round(policy.potential, 4),
        uses=policy.uses,
    )
