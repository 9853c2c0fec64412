"""The cache as the pipeline sees it: what holds for a model, what is kept for a key, and what is counted.

Used from the HTTP loop. It knows no request: the pipeline says who shares, which key it is, and what was answered.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from llmhost.cache.alike import Alike
from llmhost.cache.answer import Answer
from llmhost.cache.keys import Keys
from llmhost.cache.learner import Kind, Learner
from llmhost.cache.notebook import Keeps, Notebook
from llmhost.cache.stats import Stats
from llmhost.cache.store import AnswerStore, Meant
from llmhost.cache.trust import Learnt as LearntTrust
from llmhost.cache.trust import Terms, Trusts
from llmhost.cache.wish import Wish
from llmhost.config.schema.cache import CacheScope, CacheSettings, CacheUse
from llmhost.config.schema.models import ModelSpec
from llmhost.core.output import TokenLogprobs
from llmhost.core.ports import Clock
from llmhost.storage.learnt import LearntFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What holds for one model."""

    use: CacheUse
    scope: CacheScope
    ttl_s: float
    stale_s: float
    embedder: str | None
    """Finds questions that are alike."""
    alike: Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """What an answer has to be like."""

    scope: str
    wish: Wish
    ttl_s: float
    stale_s: float


class Found(NamedTuple):
    answer: Answer
    age_s: float
    is_stale: bool


class ResponseCache:
    """One node's. `price_factor` is what a kept answer costs of its price, and `hit_fee_nano` what it costs beside."""

    def __init__(
        self,
        settings: CacheSettings,
        models: Mapping[str, ModelSpec],
        store: AnswerStore,
        keys: Keys,
        clock: Clock,
        price_factor: Fraction,
        learnt: LearntFile | None = None,
        *,
        hit_fee_nano: int = 0,
    ) -> None:
        """What is learnt outlives the process where there is a file for it, once `recall` was called."""
        self.settings = settings
        self.store = store
        self.keys = keys
        self.stats = Stats()
        self.learner = Learner(settings)
        self.alike = Alike()
        self.trusts = Trusts()
        self._notebook: Notebook | None = None
        if learnt is not None:
            parts: dict[str, Keeps] = {
                "kinds": self.learner,
                "trusts": self.trusts,
                "alike": self.alike,
            }
            self._notebook = Notebook(parts, learnt, keys, clock)
        self.price_factor = price_factor
        self.hit_fee_nano = hit_fee_nano
        self._clock = clock
        self._rules = {name: rules_of(settings, spec) for name, spec in models.items()}

    def recall(self, refs: Mapping[str, str] | None = None) -> None:
        """Have what the process before had learnt. Blocks.

        With `refs`, the `name@version` of each model, only what is of those is recalled, and trust only where operator
        and embedder ask for the same as when it was gained.
        """
        if self._notebook is None:
            return
        if refs is not None:
            self.trusts.fits = lambda row: self._fits(row, refs)
        self._notebook.load()
        if refs is not None:
            known = set(refs.values())
            self.learner.forget(lambda kind: kind.model not in known)

    def _fits(self, row: LearntTrust, refs: Mapping[str, str]) -> bool:
        name = row.model.partition("@")[0]
        if refs.get(name) != row.model:
            return False
        rules = self._rules[name]
        return row.terms == rules.alike and row.embedder == refs.get(rules.embedder or "")

    def close(self) -> None:
        """Write down what was learnt since the last minute, and what waits for the disk. Blocks."""
        if self._notebook is not None:
            self._notebook.save_now()
        self.store.close()

    def rules(self, model: str) -> Rules:
        return self._rules[model]

    def peek(self, key: str, sought: Sought) -> Found | None:
        """What lies in memory under a key, if it is young enough for rules and request."""
        return self._judged(self.store.peek(key), sought)

    async def find(self, key: str, sought: Sought) -> Found | None:
        """The same of memory and disk. What was kept while the disk was asked is found too."""
        return self._judged(await self.store.get(key), sought) or self.peek(key, sought)

    def _judged(self, answer: Answer | None, sought: Sought) -> Found | None:
        if answer is None or answer.scope != sought.scope:
            return None
        age_s, wish = answer.age_s(self._clock.utc_ns()), sought.wish
        is_stale = age_s >= sought.ttl_s
        if is_stale and (wish.is_only or age_s >= sought.ttl_s + sought.stale_s):
            return None
        if wish.most_age_s is not None and age_s > wish.most_age_s:
            return None
        return Found(answer, age_s, is_stale)

    def keep(self, key: str, answer: Answer, *, keeps_s: float, began_ns: int) -> bool:
        """Have it for those who ask again; False where it is too large, or was to be forgotten meanwhile."""
        if len(answer.parts) == 0 or answer_bytes(answer) > self.settings.max_answer_bytes:
            return False
        return self.store.put(key, answer, expires_s=keeps_s, began_ns=began_ns) > 0

    def note(self, kind: Kind, key: str, answer: Answer, size_bytes: int | None = None) -> None:
        """A request of this kind has had this answer, made or kept: what making it cost is what keeping it saves.
        `size_bytes` is `answer_bytes` of it where that is known."""
        self.learner.note(
            kind,
            at_s=self._clock.utc_ns() / 1e9,
            key=key,
            value=answer.cost_nano or answer.engine_ns or answer.completion_tokens,
            size_bytes=answer_bytes(answer) if size_bytes is None else size_bytes,
        )

    async def learn(self) -> None:
        """Once a minute. What was asked too long ago is forgotten, too."""
        now_ns = self._clock.utc_ns()
        self.alike.drop_expired(now_ns)
        await self.learner.learn_aside(now_ns / 1e9)
        await self._save()

    async def purge(self, meant: Meant) -> int:
        """Forget what is meant, what is being made of it, and what was learnt of it; how many answers there were."""
        is_meant = self.store.test(meant)
        self.alike.forget(lambda kept: is_meant(kept.key, kept.tag))
        if meant.tag is None:
            self.learner.forget(lambda kind: meant.names(kind.org, kind.model))
            self.trusts.forget(meant.names)
        purged = await self.store.purge(meant, self._clock.utc_ns())
        await self._save()
        return purged

    async def _save(self) -> None:
        if self._notebook is not None:
            await self._notebook.save()


def rules_of(settings: CacheSettings, spec: ModelSpec) -> Rules:
    own = spec.cache
    ttl_s = settings.ttl_s if own.ttl_s is None else own.ttl_s
    return Rules(
        use=own.use or settings.use,
        scope=own.scope,
        ttl_s=min(ttl_s, settings.max_ttl_s),
        stale_s=settings.stale_s if own.stale_s is None else own.stale_s,
        embedder=own.embedder,
        alike=Terms(own.min_similarity, own.check_share, own.max_false_share),
    )


def answer_bytes(answer: Answer) -> int:
    """About what it takes, in bytes, without writing it down."""
    return sum(
        len(part.text) + 4 * len(part.tokens) + _thoughts(part.logprobs + part.prompt_logprobs)
        for part in answer.parts
    )


def _thoughts(logprobs: tuple[TokenLogprobs, ...]) -> int:
    return sum(16 + 14 * len(one.top) for one in logprobs)
