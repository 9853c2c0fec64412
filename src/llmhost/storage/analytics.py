"""One row per request and sums per minute, for forecasts, cache policies and dashboards.

Nothing here is money: a row that can't be taken is dropped and counted, and a power cut may lose the last moment.
"""

import asyncio
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmhost.core.errors import Overloaded
from llmhost.core.events import RequestEnded
from llmhost.storage.connect import Connection
from llmhost.storage.reader import Reader
from llmhost.storage.rows import insert_rows
from llmhost.storage.schema import Schema
from llmhost.storage.writer import Writer

SCHEMA = Schema(
    "analytics",
    {
        "requests_and_minutes": (
            # AUTOINCREMENT: old rows are deleted, and their numbers must not come back
            """CREATE TABLE requests (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                request_id TEXT NOT NULL,
                client_request_id TEXT,
                kind TEXT NOT NULL,
                model TEXT NOT NULL,
                key_id TEXT,
                org TEXT NOT NULL,
                team TEXT NOT NULL,
                outcome TEXT NOT NULL,
                status INTEGER NOT NULL,
                code TEXT,
                finish_reason TEXT,
                prompt_tokens INTEGER NOT NULL,
                cached_tokens INTEGER NOT NULL,
                completion_tokens INTEGER NOT NULL,
                engine_ns INTEGER NOT NULL,
                amount_nano INTEGER NOT NULL,
                queue_us INTEGER NOT NULL,
                ttft_us INTEGER,
                total_us INTEGER NOT NULL,
                is_stream INTEGER NOT NULL
            ) STRICT""",
            "CREATE INDEX requests_by_time ON requests (utc_ns)",
            """CREATE TABLE minutes (
                minute_ns INTEGER NOT NULL,
                model TEXT NOT NULL,
                org TEXT NOT NULL,
                team TEXT NOT NULL,
                node_id TEXT NOT NULL,
                answered INTEGER NOT NULL,
                refused INTEGER NOT NULL,
                failed INTEGER NOT NULL,
                cancelled INTEGER NOT NULL,
                prompt_tokens INTEGER NOT NULL,
                cached_tokens INTEGER NOT NULL,
                completion_tokens INTEGER NOT NULL,
                engine_ns INTEGER NOT NULL,
                amount_nano INTEGER NOT NULL,
                queue_sum_us INTEGER NOT NULL,
                queue_max_us INTEGER NOT NULL,
                ttft_count INTEGER NOT NULL,
                ttft_sum_us INTEGER NOT NULL,
                ttft_max_us INTEGER NOT NULL,
                total_sum_us INTEGER NOT NULL,
                total_max_us INTEGER NOT NULL,
                PRIMARY KEY (minute_ns, model, org, team, node_id)
            ) STRICT, WITHOUT ROWID""",
            """CREATE TABLE latencies (
                minute_ns INTEGER NOT NULL,
                model TEXT NOT NULL,
                org TEXT NOT NULL,
                team TEXT NOT NULL,
                node_id TEXT NOT NULL,
                measure TEXT NOT NULL, -- 'ttft' or 'total'
                bucket INTEGER NOT NULL,
                requests INTEGER NOT NULL,
                PRIMARY KEY (minute_ns, model, org, team, node_id, measure, bucket)
            ) STRICT, WITHOUT ROWID""",
        ),
        "runs": ("ALTER TABLE requests ADD COLUMN run_id TEXT",),
        "true_cost": (
            "ALTER TABLE requests ADD COLUMN cost_nano INTEGER NOT NULL DEFAULT 0",
            "ALTER TABLE minutes ADD COLUMN cost_nano INTEGER NOT NULL DEFAULT 0",
        ),
        "safety": (
            "ALTER TABLE requests ADD COLUMN safety_action TEXT",
            "ALTER TABLE requests ADD COLUMN safety_rule TEXT",
            "ALTER TABLE requests ADD COLUMN review_id TEXT",
        ),
    },
)

MINUTE_NS = 60 * 10**9
BUCKET_BOUNDS_US = tuple(round(100 * 2 ** (step / 2)) for step in range(52))
"""Upper bounds of the latency buckets: 0.1 ms to over an hour, two to each doubling. One more is for the rest."""

_PRUNED_AT_ONCE = 2_000
"""Rows deleted by one job: pruning must not hold up what is being recorded."""

_REQUEST_COLUMNS = (
    "node_id",
    "utc_ns",
    "request_id",
    "client_request_id",
    "kind",
    "model",
    "key_id",
    "org",
    "team",
    "outcome",
    "status",
    "code",
    "finish_reason",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "engine_ns",
    "amount_nano",
    "queue_us",
    "ttft_us",
    "total_us",
    "is_stream",
    "run_id",
    "cost_nano",
    "safety_action",
    "safety_rule",
    "review_id",
)
_RARE = ("client_request_id", "code", "run_id", "safety_action", "safety_rule", "review_id")
"""Columns that say nothing of most requests."""
_KEY = ("minute_ns", "model", "org", "team", "node_id")
_SUMS = (
    "answered",
    "refused",
    "failed",
    "cancelled",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "engine_ns",
    "amount_nano",
    "cost_nano",
    "queue_sum_us",
    "ttft_count",
    "ttft_sum_us",
    "total_sum_us",
)
_LARGEST_OF = ("queue_max_us", "ttft_max_us", "total_max_us")
_ADD_TO_MINUTE = f"ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET " + ", ".join(
    [f"{name} = {name} + excluded.{name}" for name in _SUMS]
    + [f"{name} = max({name}, excluded.{name})" for name in _LARGEST_OF]
)
_ADD_TO_BUCKET = (
    f"ON CONFLICT ({', '.join(_KEY)}, measure, bucket)"
    " DO UPDATE SET requests = requests + excluded.requests"
)

_KEY_TEXT = ", ".join(_KEY)
_WITHIN = (
    "minute_ns >= :since AND minute_ns < :until"
    " AND (:model IS NULL OR model = :model) AND (:org IS NULL OR org = :org)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Minute:
    """One model's traffic of one tenant in one minute.

    `team` is empty for requests without one; `model` and `org` are `-` where none was found.
    """

    minute_ns: int
    model: str
    org: str
    team: str
    node_id: str
    answered: int
    refused: int
    failed: int
    cancelled: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    engine_ns: int
    amount_nano: int
    cost_nano: int
    """What they cost the operator."""
    queue_sum_us: int
    queue_max_us: int
    ttft_count: int
    ttft_sum_us: int
    ttft_max_us: int
    total_sum_us: int
    total_max_us: int

    @property
    def requests(self) -> int:
        return self.answered + self.refused + self.failed + self.cancelled


class Analytics:
    """Owns the analytics file through its writer, which should be a NORMAL one."""

    def __init__(self, writer: Writer, reader: Reader, *, node_id: str) -> None:
        self._writer = writer
        self._reader = reader
        self._record = partial(_record, node_id=node_id)
        self._turn = threading.Lock()
        self._dropped = 0
        self._fresh: list[RequestEnded] = []
        """Of this turn of the loop."""

    @property
    def dropped(self) -> int:
        """Requests that were not recorded, because too many waited or the disk refused."""
        return self._dropped

    def record(self, event: RequestEnded) -> None:
        """Take a row and return at once; the writer gets those of one turn of the loop together. For one thread. Never
        raises for what the disk or the queue does."""
        self._fresh.append(event)
        if len(self._fresh) == 1:
            try:
                asyncio.get_running_loop().call_soon(self.hand_over)
            except RuntimeError:  # no loop runs here
                self.hand_over()

    def hand_over(self) -> None:
        """Give the writer what it has not been given yet."""
        fresh, self._fresh = self._fresh, []
        try:
            self._writer.tell_all(self._record, fresh, self._drop)
        except Overloaded:
            for event in fresh:
                self._tell(event)  # there may be room for some

    def _tell(self, event: RequestEnded) -> None:
        try:
            self._writer.tell(self._record, event, self._drop)
        except Overloaded:
            self._drop()

    def minutes(
        self, *, since_ns: int, until_ns: int, model: str | None = None, org: str | None = None
    ) -> list[Minute]:
        """Roll-ups of since <= minute < until in order of time. Waits for the disk."""
        names = tuple(Minute.__dataclass_fields__)
        query = f"SELECT {', '.join(names)} FROM minutes WHERE {_WITHIN} ORDER BY minute_ns, model, org, team"
        facts = {"since": since_ns, "until": until_ns, "model": model, "org": org}
        rows = self._reader.read_now(lambda c: c.execute(query, facts).fetchall())
        return [Minute(**dict(zip(names, row, strict=True))) for row in rows]

    def latencies(
        self,
        measure: str,
        *,
        since_ns: int,
        until_ns: int,
        model: str | None = None,
        org: str | None = None,
    ) -> dict[int, int]:
        """Requests per bucket of `ttft` or `total` in since <= minute < until. Waits for the disk."""
        query = f"SELECT bucket, sum(requests) FROM latencies WHERE measure = :measure AND {_WITHIN} GROUP BY 1"
        facts = {
            "measure": measure,
            "since": since_ns,
            "until": until_ns,
            "model": model,
            "org": org,
        }
        return self._reader.read_now(lambda c: dict(c.execute(query, facts).fetchall()))

    async def forget(self, *, requests_before_ns: int, minutes_before_ns: int) -> int:
        """Delete older rows, a few at a time; returns how many."""
        self.hand_over()
        count = 0
        for table, key, column, before_ns in (
            ("requests", "seq", "utc_ns", requests_before_ns),
            ("minutes", _KEY_TEXT, "minute_ns", minutes_before_ns),
            ("latencies", f"{_KEY_TEXT}, measure, bucket", "minute_ns", minutes_before_ns),
        ):
            statement = (
                f"DELETE FROM {table} WHERE ({key}) IN"
                f" (SELECT {key} FROM {table} WHERE {column} < ? LIMIT {_PRUNED_AT_ONCE})"
            )
            job = partial(_delete, statement=statement, before_ns=before_ns)
            while deleted := await self._writer.run(job):
                count += deleted
        return count

    def _drop(self) -> None:
        with self._turn:
            self._dropped += 1


def bucket_of(latency_us: int) -> int:
    """The bucket whose bounds enclose a latency: above the one before, up to and including its own."""
    return bisect_left(BUCKET_BOUNDS_US, latency_us)


def quantile_us(buckets: Mapping[int, int], quantile: float) -> int | None:
    """The upper bound of the bucket in which a quantile lies, at most 42% too high. None when nothing was counted."""
    rank = quantile * sum(buckets.values())
    below = 0
    for bucket in sorted(buckets):
        below += buckets[bucket]
        if below >= rank:
            return BUCKET_BOUNDS_US[min(bucket, len(BUCKET_BOUNDS_US) - 1)]
    return None


_Key = tuple[int, str, str, str, str]


def _record(
    connection: Connection, events: Sequence[RequestEnded], *, node_id: str
) -> Sequence[None]:
    """All rows, and one addition to each minute and bucket that they touch."""
    minutes: dict[_Key, list[_Row]] = {}
    rows: list[_Row] = []
    for event in events:
        caller, usage, ttft_ms = event.caller, event.usage, event.ttft_ms
        org, team, key_id = (
            ("-", "", None) if caller is None else (caller.org, caller.team or "", caller.key_id)
        )
        row = (
            node_id,
            event.utc_ns,
            event.request_id,
            event.client_request_id,
            event.kind,
            event.model,
            key_id,
            org,
            team,
            str(event.outcome),
            event.status,
            event.code,
            event.finish_reason and str(event.finish_reason),  # of another type it would be adapted
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            usage.engine_ns,
            event.amount_nano,
            round(event.queue_ms * 1000),
            None if ttft_ms is None else round(ttft_ms * 1000),
            round(event.total_ms * 1000),
            int(event.stream),
            event.run_id,
            event.cost_nano,
            *(event.safety or _NO_SAFETY),
        )
        rows.append(row)
        key = (event.utc_ns - event.utc_ns % MINUTE_NS, _known_model(event), org, team, node_id)
        of_minute = minutes.get(key)
        if of_minute is None:
            of_minute = minutes[key] = []
        of_minute.append(row)
    insert_rows(connection, "requests", _REQUEST_COLUMNS, rows, rare=_RARE)
    of_minutes: list[_Row] = []
    of_buckets: list[_Row] = []
    for key, of_minute in minutes.items():
        columns = tuple(zip(*of_minute, strict=True))
        of_minutes.append((*key, *_sums(columns)))
        of_buckets += [(*key, *place, count) for place, count in _buckets(columns)]
    insert_rows(
        connection, "minutes", (*_KEY, *_SUMS, *_LARGEST_OF), of_minutes, or_else=_ADD_TO_MINUTE
    )
    names = (*_KEY, "measure", "bucket", "requests")
    insert_rows(connection, "latencies", names, of_buckets, or_else=_ADD_TO_BUCKET)
    return [None] * len(events)


_NO_SAFETY = (None, None, None)
_Row = tuple[Any, ...]
_PLACES = {name: place for place, name in enumerate(_REQUEST_COLUMNS)}
_OUTCOME, _QUEUE, _TTFT, _TOTAL = map(
    _PLACES.__getitem__, ("outcome", "queue_us", "ttft_us", "total_us")
)
_OUTCOMES = _SUMS[:4]
_QUANTITIES = tuple(map(_PLACES.__getitem__, _SUMS[4:10]))


def _sums(columns: Sequence[_Row]) -> Iterator[int]:
    """What the rows of one minute add to it, from their columns: _SUMS, and then _LARGEST_OF."""
    outcomes, queue_us, total_us = columns[_OUTCOME], columns[_QUEUE], columns[_TOTAL]
    ttft_us = [us for us in columns[_TTFT] if us is not None]
    yield from map(outcomes.count, _OUTCOMES)
    yield from (sum(columns[place]) for place in _QUANTITIES)
    yield from (sum(queue_us), len(ttft_us), sum(ttft_us), sum(total_us))
    yield from (max(0, *queue_us), max(0, 0, *ttft_us), max(0, *total_us))


def _buckets(columns: Sequence[_Row]) -> Iterator[tuple[tuple[str, int], int]]:
    """Requests by measure and bucket."""
    for measure, place in (("total", _TOTAL), ("ttft", _TTFT)):
        found = Counter(bucket_of(us) for us in columns[place] if us is not None)
        yield from (((measure, bucket), count) for bucket, count in found.items())


def _known_model(event: RequestEnded) -> str:
    """Names that callers make up are kept with the request and out of the sums, which they would swell."""
    is_known = "@" in event.model and event.code != "model_not_found"
    return event.model if is_known else "-"


def _delete(connection: Connection, *, statement: str, before_ns: int) -> int:
    return connection.execute(statement, (before_ns,)).rowcount
