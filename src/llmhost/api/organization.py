"""/v1/organization: usage and costs where tools look that were written for OpenAI's.

The admin token sees all organisations, a key with the role admin or billing its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from litestar import get
from litestar.types import Guard

from llmhost.api.admin_access import Visitor
from llmhost.api.invoice_wire import SignedStatement
from llmhost.api.invoices import InvoiceDesk
from llmhost.api.organization_wire import (
    Amount,
    CompletionsBucket,
    CompletionsPage,
    CompletionsResult,
    CostsBucket,
    CostsPage,
    CostsResult,
    EmbeddingsBucket,
    EmbeddingsPage,
    EmbeddingsResult,
    cursor_of,
    start_in,
)
from llmhost.api.params import FromPath, FromQuery
from llmhost.api.reports import ReportDesk, seen_by
from llmhost.api.router import Router
from llmhost.core.errors import InvalidValue, MissingParameter, NotFound
from llmhost.core.ports import Clock
from llmhost.cost.costs_by_line import line_costs, whole_costs
from llmhost.cost.lines import FEMTO, femto_to_dollars
from llmhost.cost.periods import SECOND_NS
from llmhost.cost.query import LAST_NS, USED, Query
from llmhost.cost.reports import Line, Only, Reports
from llmhost.cost.statement import Statements
from llmhost.tenants.roles import Access, Right

R = TypeVar("R")

WIDTHS: Mapping[str, tuple[str, int, int, int]] = {
    "1m": ("minute", 60, 60, 1_440),
    "1h": ("hour", 3_600, 24, 168),
    "1d": ("day", 86_400, 7, 31),
}
"""A bucket's name here, its seconds, and how many come on a page when nothing is said, and at most."""
COST_BUCKETS = (7, 180)
GROUPS: Mapping[str, str | None] = {
    "project_id": "team",
    "api_key_id": "key",
    "model": "model",
    "user_id": None,
    "batch": None,
    "service_tier": None,
    "api_source": None,
}
"""What OpenAI groups by, and what that is here; None for what no request has."""
COST_GROUPS = ("project_id", "api_key_id", "line_item", "user_id", "api_source")
NEVER_USED = (
    "images",
    "audio_speeches",
    "audio_transcriptions",
    "vector_stores",
    "code_interpreter_sessions",
    "file_search_calls",
    "web_search_calls",
)
"""What this server has not: asked for its usage, OpenAI's API would have buckets with nothing in them."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question in OpenAI's words."""

    query: Query
    """Of the page's time, by the unit of its buckets and by groups."""
    groups: tuple[str, ...]
    """OpenAI's names of them."""
    line_items: tuple[str, ...]
    bounds: tuple[tuple[int, int], ...]
    """The page's buckets, in seconds: the first and the last may be cut by the question's time."""
    next_page: str | None
    is_nobody: bool
    """Of users, of whom there are none."""


class OrganizationDesk:
    """Answers in OpenAI's shape. Blocks."""

    def __init__(self, reports: Reports, statements: Statements, clock: Clock) -> None:
        self._reports = reports
        self._statements = statements
        self._clock = clock

    def completions(
        self, params: Any, access: Access, only: Only = "completions"
    ) -> CompletionsPage:
        asked = self._asked(params, access, GROUPS)
        found = self._usage(asked, only, partial(_completions, only))
        return CompletionsPage(
            data=[
                CompletionsBucket(start_time=start, end_time=end, results=found.get(start, []))
                for start, end in asked.bounds
            ],
            has_more=asked.next_page is not None,
            next_page=asked.next_page,
        )

    def embeddings(self, params: Any, access: Access) -> EmbeddingsPage:
        groups = {name: GROUPS[name] for name in ("project_id", "user_id", "api_key_id", "model")}
        asked = self._asked(params, access, groups)
        found = self._usage(asked, "embeddings", _embeddings)
        return EmbeddingsPage(
            data=[
                EmbeddingsBucket(start_time=start, end_time=end, results=found.get(start, []))
                for start, end in asked.bounds
            ],
            has_more=asked.next_page is not None,
            next_page=asked.next_page,
        )

    def nothing(self, params: Any, access: Access) -> CompletionsPage:
        """Of what this server has not."""
        asked = self._asked(params, access, GROUPS)
        data = [CompletionsBucket(start_time=a, end_time=b, results=[]) for a, b in asked.bounds]
        return CompletionsPage(
            data=data, has_more=asked.next_page is not None, next_page=asked.next_page
        )

    def costs(self, params: Any, access: Access) -> CostsPage:
        groups = {**GROUPS, "line_item": None}
        asked = self._asked(params, access, {name: groups[name] for name in COST_GROUPS})
        found = self._costs(asked)
        return CostsPage(
            data=[
                CostsBucket(start_time=start, end_time=end, results=found.get(start, []))
                for start, end in asked.bounds
            ],
            has_more=asked.next_page is not None,
            next_page=asked.next_page,
        )

    def _asked(self, params: Any, access: Access, groups: Mapping[str, str | None]) -> Asked:
        wanted = _names(params, "group_by")
        for name in wanted:
            if name not in groups:
                raise InvalidValue(
                    f"'group_by' is {name[:80]!r}; it may be {', '.join(groups)}.", param="group_by"
                )
        width = params.get("bucket_width", "1d")
        is_cost = "line_item" in groups
        if width not in WIDTHS or (is_cost and width != "1d"):
            allowed = "1d" if is_cost else ", ".join(WIDTHS)
            raise InvalidValue(
                f"'bucket_width' is {width[:80]!r}; it may be {allowed}.", param="bucket_width"
            )
        unit, seconds, *counts = WIDTHS[width]
        usual, most = COST_BUCKETS if is_cost else counts
        limit = _number(params, "limit", usual, least=1, most=most)
        bounds, next_page = self._bounds(params, seconds, limit)
        ours = dict.fromkeys(own for one in wanted if (own := groups[one]) is not None)
        query = Query(
            by=(unit, *ours),
            since_ns=bounds[0][0] * SECOND_NS if bounds else 0,
            until_ns=bounds[-1][1] * SECOND_NS if bounds else 0,
            teams=_names(params, "project_ids"),
            keys=_names(params, "api_key_ids"),
            models=_names(params, "models"),
        )
        return Asked(
            seen_by(access, query),
            wanted,
            _names(params, "line_items"),
            bounds,
            next_page,
            bool(_names(params, "user_ids")),
        )

    def _bounds(
        self, params: Any, seconds: int, limit: int
    ) -> tuple[tuple[tuple[int, int], ...], str | None]:
        """The page's buckets, and the name of the next page."""
        if params.get("start_time") is None:
            raise MissingParameter("start_time")
        latest = LAST_NS // SECOND_NS
        start = _number(params, "start_time", 0, least=0, most=latest)
        now = self._clock.utc_ns() // SECOND_NS + 1
        end = _number(params, "end_time", max(now, start), least=0, most=latest)
        if end < start:
            raise InvalidValue("'end_time' lies before 'start_time'.", param="end_time")
        if (page := params.get("page")) is not None:
            start = max(start, start_in(page))
        found: list[tuple[int, int]] = []
        while start < end and len(found) < limit:
            until = min(start - start % seconds + seconds, end)
            found.append((start, until))
            start = until
        return tuple(found), cursor_of(start) if start < end else None

    def _usage(
        self, asked: Asked, only: Only, result: Callable[[Line, dict[str, Any]], R]
    ) -> dict[int, list[R]]:
        """Results by the beginning of their bucket."""
        found: dict[int, list[R]] = {}
        if not asked.bounds or asked.is_nobody:
            return found
        for line in self._reports.usage(asked.query, only=only):
            facts = _facts(asked, line.groups)
            found.setdefault(_start(asked, line.groups[0]), []).append(result(line, facts))
        return found

    def _costs(self, asked: Asked) -> dict[int, list[CostsResult]]:
        found: dict[int, list[CostsResult]] = {}
        if not asked.bounds or asked.is_nobody:
            return found
        if "line_item" not in asked.groups and not asked.line_items:
            costs = whole_costs(self._reports, asked.query)
        else:
            costs = line_costs(self._reports, self._statements, asked.query, asked.line_items)
            costs = costs if "line_item" in asked.groups else costs.without_items()
        for key, (femto, quantity) in costs.sums.items():
            *groups, item = key
            facts = _facts(asked, tuple(groups))
            amount = Amount(value=femto / FEMTO, exact=femto_to_dollars(femto))
            one = CostsResult(amount=amount, line_item=item, quantity=quantity, **facts)
            found.setdefault(_start(asked, groups[0]), []).append(one)
        return found


def organization_router(
    organizations: OrganizationDesk, invoices: InvoiceDesk, desk: ReportDesk, guard: Guard
) -> Router:
    """The routes. Lists in a query are written `group_by[]=model` or `group_by=model`, once for each."""

    @get("/usage/completions", needs=Right.ORG_USAGE)
    async def completions(request: Visitor) -> CompletionsPage:
        """Tokens and requests of models that answer with text, in buckets of a minute, an hour or a day of UTC."""
        params, access = request.query_params, request.user
        return await desk.in_thread(lambda: organizations.completions(params, access))

    @get("/usage/embeddings", needs=Right.ORG_USAGE)
    async def embeddings(request: Visitor) -> EmbeddingsPage:
        """Tokens and requests for embeddings, in buckets of a minute, an hour or a day of UTC."""
        params, access = request.query_params, request.user
        return await desk.in_thread(lambda: organizations.embeddings(params, access))

    @get("/usage/decisions", needs=Right.ORG_USAGE)
    async def decisions(request: Visitor) -> CompletionsPage:
        """Tokens and requests of questions with fixed answers, in buckets of a minute, an hour or a day of UTC."""
        params, access = request.query_params, request.user
        return await desk.in_thread(lambda: organizations.completions(params, access, "decisions"))

    @get("/usage/moderations", needs=Right.ORG_USAGE)
    async def moderations(request: Visitor) -> CompletionsPage:
        """Tokens and requests of texts that were judged, in buckets of a minute, an hour or a day of UTC."""
        params, access = request.query_params, request.user
        return await desk.in_thread(
            lambda: organizations.completions(params, access, "moderations")
        )

    @get("/usage/{kind:str}", needs=Right.ORG_USAGE, sync_to_thread=False)
    def nothing(request: Visitor, kind: FromPath[str]) -> CompletionsPage:
        """Of what this server has not: buckets with nothing in them."""
        if kind not in NEVER_USED:
            raise NotFound(f"There is no usage of {kind[:80]!r}.")
        return organizations.nothing(request.query_params, request.user)

    @get("/costs", needs=Right.ORG_USAGE)
    async def costs(request: Visitor) -> CostsPage:
        """What was charged, in days of UTC."""
        params, access = request.query_params, request.user
        return await desk.in_thread(lambda: organizations.costs(params, access))

    @get("/invoices/{month:str}", needs=Right.ORG_USAGE)
    async def invoice(
        request: Visitor,
        month: FromPath[str],
        timezone: FromQuery[str] = "UTC",
        org: FromQuery[str | None] = None,
    ) -> SignedStatement:
        """The signed statement of a month: of one's own organisation, or of `org` for the admin token."""
        name, access = org or request.user.org, request.user
        if name is None:
            raise MissingParameter("org")
        return await desk.in_thread(lambda: invoices.statement(name, month, timezone, access))

    return Router(
        "/v1/organization",
        guards=[guard],
        tags=["organization"],
        route_handlers=[
            *(completions, embeddings, decisions, moderations),
            *(nothing, costs, invoice),
        ],
    )


def _completions(only: Only, line: Line, facts: dict[str, Any]) -> CompletionsResult:
    used = dict(zip(USED, line.sums, strict=True))
    cached = used["cached_input_tokens"]
    return CompletionsResult(
        object=f"organization.usage.{only}.result",
        input_tokens=used["fresh_input_tokens"] + cached,
        output_tokens=used["output_tokens"] + used["reasoning_tokens"],
        input_cached_tokens=cached,
        num_model_requests=used["requests"],
        **facts,
    )


def _embeddings(line: Line, facts: dict[str, Any]) -> EmbeddingsResult:
    used = dict(zip(USED, line.sums, strict=True))
    return EmbeddingsResult(
        input_tokens=used["embedding_tokens"], num_model_requests=used["requests"], **facts
    )


def _facts(asked: Asked, groups: tuple[Any, ...]) -> dict[str, Any]:
    """Whose it is, in OpenAI's names. The first group is the bucket."""
    found = dict(zip(asked.query.by[1:], groups[1:], strict=True))
    facts = {name: found[ours] for name in asked.groups if (ours := GROUPS.get(name))}
    return {**facts, "batch": False} if "batch" in asked.groups else facts


def _start(asked: Asked, bucket_ns: Any) -> int:
    """A bucket by the seconds that the page has for its beginning."""
    return max(int(bucket_ns) // SECOND_NS, asked.bounds[0][0])


def _names(params: Any, name: str) -> tuple[str, ...]:
    """`name[]=a&name[]=b`, `name=a&name=b`, or `name=a,b` for groups."""
    found = [*params.getall(f"{name}[]", []), *params.getall(name, [])]
    if name == "group_by":
        found = [one for text in found for one in text.split(",")]
    return tuple(dict.fromkeys(one for one in found if one))


def _number(params: Any, name: str, default: int, *, least: int, most: int) -> int:
    text = params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 12:
        raise InvalidValue(f"{name!r} is {text[:80]!r}, which is no whole number.", param=name)
    if not least <= int(text) <= most:
        raise InvalidValue(f"{name!r} is {text}; it may be {least} to {most}.", param=name)
    return int(text)
