import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.core.caller import Caller
from llmhost.core.errors import Overloaded
from llmhost.core.events import RequestEnded, SafetyNote
from llmhost.core.output import Outcome, Usage
from llmhost.storage.analytics import (
    BUCKET_BOUNDS_US,
    MINUTE_NS,
    SCHEMA,
    Analytics,
    bucket_of,
    quantile_us,
)
from llmhost.storage.reader import Reader
from llmhost.storage.writer import Writer

NOON_NS = 30_000_000 * MINUTE_NS
ACME = Caller(key_id="abc", org="acme", team="search")


def ended(**changes: Any) -> RequestEnded:
    facts: dict[str, Any] = {
        "request_id": "req_1",
        "client_request_id": None,
        "utc_ns": NOON_NS,
        "kind": "chat",
        "model": "tiny@1",
        "caller": ACME,
        "outcome": Outcome.ANSWERED,
        "status": 200,
        "code": None,
        "finish_reason": "stop",
        "usage": Usage(10, 4, 20, 5_000),
        "amount_nano": 70,
        "cost_nano": 30,
        "queue_ms": 0.5,
        "ttft_ms": 12.0,
        "total_ms": 300.0,
        "stream": True,
    }
    return RequestEnded(**facts | changes)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    with Writer(tmp_path / "analytics.db", synchronous="NORMAL", migrations=[SCHEMA]) as writer:
        yield writer


@pytest.fixture
def reader(writer: Writer) -> Iterator[Reader]:
    with Reader(writer.path) as reader:
        yield reader


@pytest.fixture
def analytics(writer: Writer, reader: Reader) -> Analytics:
    return Analytics(writer, reader, node_id="node-1")


def settle(writer: Writer) -> None:
    """Everything submitted so far has been committed or given up."""
    writer.submit(lambda _: None).exception(10)


def all_minutes(analytics: Analytics, **where: str) -> list:
    return analytics.minutes(since_ns=0, until_ns=2**62, **where)


def test_a_request_becomes_a_row_with_all_that_is_known(
    analytics: Analytics, writer: Writer, reader: Reader
) -> None:
    note = SafetyNote("warn", "pii.email", "review_1")
    analytics.record(ended(client_request_id="theirs", safety=note))
    settle(writer)
    rows = reader.read_now(lambda c: c.execute("SELECT * FROM requests").fetchall())
    who = (1, "node-1", NOON_NS, "req_1", "theirs", "chat", "tiny@1", "abc", "acme", "search")
    what = ("answered", 200, None, "stop", 10, 4, 20, 5000, 70, 500, 12_000, 300_000, 1, None, 30)
    assert rows == [(*who, *what, *note)]


def test_a_minute_adds_up_its_requests(analytics: Analytics, writer: Writer) -> None:
    analytics.record(ended(utc_ns=NOON_NS))
    analytics.record(ended(utc_ns=NOON_NS + MINUTE_NS - 1, ttft_ms=40.0, total_ms=100.0))
    analytics.record(ended(outcome=Outcome.FAILED, ttft_ms=None, queue_ms=9.0, amount_nano=0))
    analytics.record(ended(utc_ns=NOON_NS + MINUTE_NS))
    settle(writer)
    first, second = all_minutes(analytics)
    assert (first.minute_ns, second.minute_ns) == (NOON_NS, NOON_NS + MINUTE_NS)
    assert (first.answered, first.refused, first.failed, first.cancelled) == (2, 0, 1, 0)
    assert (first.requests, second.requests) == (3, 1)
    assert (first.prompt_tokens, first.cached_tokens, first.completion_tokens) == (30, 12, 60)
    assert (first.engine_ns, first.amount_nano, first.cost_nano) == (15_000, 140, 90)
    assert (first.queue_sum_us, first.queue_max_us) == (10_000, 9_000)
    assert (first.ttft_count, first.ttft_sum_us, first.ttft_max_us) == (2, 52_000, 40_000)
    assert (first.total_sum_us, first.total_max_us) == (700_000, 300_000)


def test_minutes_are_kept_apart_by_model_and_tenant(analytics: Analytics, writer: Writer) -> None:
    analytics.record(ended())
    analytics.record(ended(model="big@2"))
    analytics.record(ended(caller=Caller(key_id="abc", org="acme")))
    analytics.record(ended(caller=Caller(key_id="x", org="beta")))
    settle(writer)
    found = [(m.model, m.org, m.team) for m in all_minutes(analytics)]
    assert found == [
        ("big@2", "acme", "search"),
        ("tiny@1", "acme", ""),
        ("tiny@1", "acme", "search"),
        ("tiny@1", "beta", ""),
    ]
    assert len(all_minutes(analytics, model="tiny@1")) == 3
    assert len(all_minutes(analytics, org="beta")) == 1
    assert analytics.minutes(since_ns=0, until_ns=NOON_NS) == []


def test_made_up_model_names_do_not_swell_the_sums(analytics: Analytics, writer: Writer) -> None:
    for i in range(20):
        refused = {"outcome": Outcome.REFUSED, "status": 404, "code": "model_not_found"}
        analytics.record(ended(model=f"guess-{i}", **refused))
        analytics.record(ended(model=f"guess@{i}", caller=None, **refused))
    settle(writer)
    assert [(m.model, m.org, m.refused) for m in all_minutes(analytics)] == [
        ("-", "-", 20),
        ("-", "acme", 20),
    ]


def test_latencies_are_counted_in_buckets(analytics: Analytics, writer: Writer) -> None:
    for total_ms in (1.0, 1.0, 50.0, 5_000.0):
        analytics.record(ended(ttft_ms=None, total_ms=total_ms))
    settle(writer)
    counts = analytics.latencies("total", since_ns=0, until_ns=2**62, model="tiny@1")
    assert counts == {bucket_of(1_000): 2, bucket_of(50_000): 1, bucket_of(5_000_000): 1}
    assert analytics.latencies("ttft", since_ns=0, until_ns=2**62) == {}
    assert analytics.latencies("total", since_ns=0, until_ns=2**62, org="beta") == {}


@given(st.integers(0, 10**12))
def test_a_bucket_encloses_what_is_put_in_it(latency_us: int) -> None:
    bucket = bucket_of(latency_us)
    assert bucket == 0 or BUCKET_BOUNDS_US[bucket - 1] < latency_us
    assert bucket == len(BUCKET_BOUNDS_US) or latency_us <= BUCKET_BOUNDS_US[bucket]


@given(
    st.lists(st.integers(100, 10**9), min_size=1),
    st.sampled_from([0.5, 0.95, 0.99, 1.0]),
)
def test_a_quantile_is_never_too_low_and_at_most_half_too_high(
    latencies: list[int], quantile: float
) -> None:
    buckets: dict[int, int] = {}
    for latency_us in latencies:
        buckets[bucket_of(latency_us)] = buckets.get(bucket_of(latency_us), 0) + 1
    found = quantile_us(buckets, quantile)
    exact = next(
        value
        for rank, value in enumerate(sorted(latencies), start=1)
        if rank >= quantile * len(latencies)
    )
    assert found is not None
    assert exact <= found <= exact * 1.42 + 1


def test_no_requests_have_no_quantile() -> None:
    assert quantile_us({}, 0.5) is None


def test_a_full_queue_drops_the_row_and_never_the_request(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with Writer(path, migrations=[SCHEMA], max_queue=5) as writer, Reader(path) as reader:
        analytics = Analytics(writer, reader, node_id="n")
        writer.submit(lambda _: [analytics.record(ended()) for _ in range(8)]).result(10)
        settle(writer)
        assert analytics.dropped == 3
        assert sum(m.requests for m in all_minutes(analytics)) == 5


def test_rows_that_the_disk_refuses_are_counted(analytics: Analytics, writer: Writer) -> None:
    pages = writer.submit(lambda c: int(c.execute("PRAGMA page_count").fetchone()[0])).result(10)
    writer.submit(lambda c: c.execute(f"PRAGMA max_page_count={pages}").fetchall()).result(10)
    analytics.record(ended(client_request_id="x" * 50_000))
    settle(writer)
    assert analytics.dropped == 1
    assert all_minutes(analytics) == []


async def test_old_rows_are_forgotten_and_numbers_never_come_back(
    analytics: Analytics, writer: Writer, reader: Reader
) -> None:
    for minute in range(4):
        analytics.record(ended(utc_ns=NOON_NS + minute * MINUTE_NS))
    deleted = await analytics.forget(
        requests_before_ns=NOON_NS + 10 * MINUTE_NS, minutes_before_ns=NOON_NS + 2 * MINUTE_NS
    )
    assert deleted == 4 + 2 + 2 * 2
    analytics.record(ended(utc_ns=NOON_NS + 3 * MINUTE_NS))
    analytics.hand_over()
    settle(writer)
    assert reader.read_now(lambda c: c.execute("SELECT seq FROM requests").fetchall()) == [(5,)]
    assert [m.requests for m in all_minutes(analytics)] == [1, 2]
    assert sum(analytics.latencies("total", since_ns=0, until_ns=2**62).values()) == 3


async def test_more_rows_than_one_job_deletes_are_all_forgotten(
    analytics: Analytics, writer: Writer, reader: Reader
) -> None:
    for i in range(4_500):
        analytics.record(ended(request_id=f"req_{i}"))
    await analytics.forget(requests_before_ns=2**62, minutes_before_ns=0)
    assert reader.read_now(lambda c: c.execute("SELECT count(*) FROM requests").fetchone()) == (0,)
    assert analytics.dropped == 0


async def test_rows_of_one_turn_are_handed_over_together_and_none_is_left_behind(
    analytics: Analytics, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    enqueue = writer._enqueue

    def counted(*tasks: Any) -> None:
        looks.append(sum(len(task.items) for task in tasks))
        enqueue(*tasks)

    monkeypatch.setattr(writer, "_enqueue", counted)
    for _ in range(3):
        analytics.record(ended())
    await asyncio.sleep(0)
    analytics.record(ended())
    analytics.hand_over()
    await asyncio.sleep(0)
    settle(writer)
    assert [look for look in looks if look != 1][:1] == [3]
    assert sum(minute.requests for minute in all_minutes(analytics)) == 4


async def test_of_rows_that_are_too_many_for_the_queue_those_are_taken_that_fit(
    analytics: Analytics, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue, room = writer._enqueue, 2

    def crowded(*tasks: Any) -> None:
        nonlocal room
        rows = sum(len(task.items) for task in tasks)
        if rows > room:
            raise Overloaded("full")
        room -= rows
        enqueue(*tasks)

    monkeypatch.setattr(writer, "_enqueue", crowded)
    for _ in range(3):
        analytics.record(ended())
    await asyncio.sleep(0)
    monkeypatch.undo()
    settle(writer)
    assert analytics.dropped == 1
    assert sum(minute.requests for minute in all_minutes(analytics)) == 2
