"""/admin/v1/cache: for the operator alone."""

from litestar import get, post
from litestar.types import ControllerRouterHandler, Guard

from llmhost.api.admin_tenants import PAGE_ROWS
from llmhost.api.cache.desk import (
    CacheDesk,
    CachePolicyPage,
    CacheReport,
    CacheStatsPage,
    NewPurge,
    Purged,
)
from llmhost.api.params import FromQuery, JSONBody
from llmhost.api.router import Router


def cache_router(desk: CacheDesk, guard: Guard) -> Router:
    @get("/cache")
    async def show_cache() -> CacheReport:
        """What the response cache holds, and what it has saved since the node's start."""
        return await desk.report()

    @get("/cache/stats")
    async def cache_stats(
        limit: FromQuery[int] = PAGE_ROWS, after: FromQuery[str | None] = None
    ) -> CacheStatsPage:
        """Hits, misses and savings of each organisation and model since the node's start."""
        return desk.stats(limit=limit, after=after)

    @get("/cache/policies")
    async def cache_policies(
        limit: FromQuery[int] = PAGE_ROWS, after: FromQuery[str | None] = None
    ) -> CachePolicyPage:
        """What was learnt of kinds of requests that repeat."""
        return desk.policies(limit=limit, after=after)

    @post("/cache/purge", status_code=200)
    async def purge_cache(data: JSONBody[NewPurge]) -> Purged:
        """Forget answers of a model, an organisation or a tag, or all of them, on disk too when it answers."""
        return await desk.purge(data)

    handlers: list[ControllerRouterHandler] = [
        show_cache,
        cache_stats,
        cache_policies,
        purge_cache,
    ]
    return Router("/admin/v1", guards=[guard], tags=["admin"], route_handlers=handlers)
