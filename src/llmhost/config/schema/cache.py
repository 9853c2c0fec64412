"""[cache] and [models.NAME.cache]: answers that are kept for whoever asks the same again."""

from typing import Annotated, Literal

from msgspec import Meta

from llmhost.config.schema.section import Count, Positive, Seconds, Section

CacheUse = Literal["off", "asked", "deterministic", "all"]
CacheScope = Literal["key", "team", "org", "public"]


class CacheSettings(Section, frozen=True):
    """[cache]: complete answers that are kept for whoever asks the same again."""

    use: CacheUse = "asked"
    """For which requests: `asked` by header, all with temperature 0 or a seed (`deterministic`), `all`, or none."""
    ttl_s: Seconds = 3600.0
    """How long an answer is given again, where no learned policy says otherwise."""
    stale_s: Seconds = 0.0
    """How long after that it still is, while a fresh one is made in the background."""
    max_ttl_s: Seconds = 86_400.0
    """The longest that a learned policy or a model's own time may say: no answer that is older is given."""
    price_factor: str = "0"
    """What a kept answer costs of the price of the same tokens; "0" is nothing, "1" all of it."""
    price_per_hit: str = "0"
    """Dollars for each kept answer of a model with a price, beside that."""
    memory_bytes: Count = 64 * 2**20
    """Answers in memory; the least recently used make room."""
    disk_bytes: Count = 2**30
    """Answers on disk, which outlive the process; the oldest make room. 0 keeps none on disk."""
    max_answer_bytes: Positive = 2**20
    """Larger answers are not kept."""
    learn: bool = True
    """Find out which kinds of requests repeat, and give each the time that saves most."""
    min_hit_potential: Annotated[float, Meta(ge=0, le=1)] = 0.3
    """The share of repeated requests beyond which a kind of requests gets a policy of its own."""


class ModelCacheSettings(Section, frozen=True):
    """[models.NAME.cache]: what is different for this model from [cache]."""

    use: CacheUse | None = None
    """For which requests; as [cache] says when absent."""
    scope: CacheScope = "team"
    """Who shares answers: without a team, the organisation."""
    ttl_s: Seconds | None = None
    """How long an answer is given again; as [cache] says when absent."""
    stale_s: Seconds | None = None
    """How long after that; as [cache] says when absent."""
    embedder: str | None = None
    """A model of [models] that makes vectors; with one, requests can ask for answers to questions that are alike."""
    min_similarity: Annotated[float, Meta(ge=0.5, le=1)] = 0.92
    """The least cosine of two such questions; it rises by itself where checks say so."""
    check_share: Annotated[float, Meta(ge=0.01, le=1)] = 0.05
    """The share of such hits that the model answers as well, to see whether both answers agree; of the first, all."""
    max_false_share: Annotated[float, Meta(ge=0, le=0.5)] = 0.01
    """More answers than this that do not agree, and questions have to be more alike."""
