"""The response cache of a node: its files, its keys, and what else an answer depends on."""

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack

import msgspec

from llmhost.cache.disk import Disk
from llmhost.cache.keys import Keys
from llmhost.cache.memory import Memory
from llmhost.cache.response_cache import ResponseCache
from llmhost.cache.stats import Counts
from llmhost.cache.store import AnswerStore
from llmhost.config.schema import Settings
from llmhost.core.caller import Caller
from llmhost.core.ports import Clock
from llmhost.cost.prices import PriceBook
from llmhost.cost.pricing import factor_of, nano_of
from llmhost.deploy.catalogue import ModelEntry
from llmhost.hooks.registry import Plugins
from llmhost.observe.cache import CacheLevels, CacheMetrics, CacheRow
from llmhost.pipeline.context import RequestContext
from llmhost.storage.learnt import LearntFile
from llmhost.storage.node import DataDir

LEARN_S, EXPIRE_S = 60.0, 3600.0
"""How often policies are learnt, and what is too old on disk makes room."""


def open_cache(
    settings: Settings, data_dir: DataDir, clock: Clock, closing: AsyncExitStack
) -> ResponseCache:
    """The cache of a node; `closing` closes its files, which are made when the first answer is kept. Blocks.

    Raises ConfigError where their folder is somebody else's.
    """
    cache = settings.cache
    keys = Keys(data_dir.cache_secret)
    disk = Disk(data_dir.cache, keys, cache.disk_bytes) if cache.disk_bytes else None
    store = AnswerStore(Memory(cache.memory_bytes), disk, keys)
    factor = factor_of(cache.price_factor, key="cache.price_factor")
    learnt = LearntFile(data_dir.learnt_db, node_id=data_dir.node_id) if cache.disk_bytes else None
    fee_nano = nano_of(cache.price_per_hit, key="cache.price_per_hit")
    opened = ResponseCache(
        cache, settings.models, store, keys, clock, factor, learnt, hit_fee_nano=fee_nano
    )
    closing.callback(opened.close)
    return opened


def recall(cache: ResponseCache, entries: Iterable[ModelEntry]) -> None:
    """Have what the process before had learnt of the models that there are. Blocks."""
    cache.recall({entry.name: str(entry.ref) for entry in entries})


async def keep_learning(cache: ResponseCache) -> None:
    """Runs for ever."""
    left = 0.0
    while True:
        await asyncio.sleep(LEARN_S)
        await cache.learn()
        left -= LEARN_S
        if left <= 0:
            left = EXPIRE_S
            await cache.store.drop_expired()


def measure_cache(cache: ResponseCache, metrics: CacheMetrics, models: Iterable[str]) -> None:
    """Have the cache's counts read at every scrape; those of `models` are there before the first request."""
    known = tuple(models)

    def rows() -> Iterator[CacheRow]:
        by_model = {model: Counts() for model in known}
        for _, model, counts in cache.stats.rows():
            by_model.setdefault(model, Counts()).add(counts)
        for model, counts in by_model.items():
            results = {
                "hit": counts.hits - counts.stale - counts.semantic,
                "semantic": counts.semantic,
                "stale": counts.stale,
                "joined": counts.joined,
                "miss": counts.misses,
                "bypass": counts.bypassed,
            }
            yield CacheRow(
                model,
                results,
                counts.saved_tokens,
                counts.saved_engine_ns,
                counts.saved_cost_nano,
                counts.semantic_checks - counts.semantic_false,
                counts.semantic_false,
            )

    def levels() -> CacheLevels:
        memory, disk = cache.store.memory, cache.store.disk
        return CacheLevels(
            len(memory),
            memory.bytes,
            memory.evicted,
            0 if disk is None else disk.refused,
            len(cache.learner.policies()),
        )

    metrics.read_from(rows, levels)


def epoch_of(
    settings: Settings, plugins: Plugins, prices: PriceBook, policy_of: Callable[[Caller], str]
) -> Callable[[RequestContext], str]:
    """What an answer depends on beside model and request: the caller's safety policy by name and version, the node's
    own rules and plugins, and the price."""
    rules = msgspec.json.encode(settings.safety)
    for plugin in plugins.report():
        rules += f"\0{plugin.name} {plugin.version}".encode()
    node = hashlib.blake2b(rules, digest_size=8).hexdigest()

    def epoch(context: RequestContext) -> str:
        caller, name = context.known_caller, context.known_deployment.entry.name
        price = prices.list.of(name, caller.org, context.arrived_utc_ns)
        return f"{policy_of(caller)} {node} {'' if price is None else price.version}"

    return epoch
