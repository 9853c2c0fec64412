"""What an answer's headers say of the cache: where the answer comes from, and how old it is."""

from llmhost.cache.wish import HEADER, SIMILARITY_HEADER
from llmhost.pipeline.cache_use import CacheUse, Status

NAMES = (HEADER, SIMILARITY_HEADER, "age")


def cache_headers(use: CacheUse | None) -> dict[str, str]:
    """Nothing where the request has no part in the cache. `age` is in seconds, as HTTP has it."""
    if use is None:
        return {}
    if use.answer is None:
        return {HEADER: use.status.value}
    headers = {HEADER: str(use.status), "age": str(use.age_s)}
    if use.status is Status.SEMANTIC and use.meaning is not None:
        headers[SIMILARITY_HEADER] = f"{use.meaning.similarity:.4f}"
    return headers
