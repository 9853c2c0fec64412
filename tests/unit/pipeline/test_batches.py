"""Batches in a whole node: their states, their callers, their prices, and what a kill at any moment leaves."""

import asyncio
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.pipeline.batch_node import (
    CHAT,
    bearing,
    begin,
    ended,
    line,
    lines_of,
    text,
    upload,
)
from tests.unit.pipeline.node import HELD_MODEL, Held, bill_of, until

from llmhost.config.schema import Settings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.money import PriceSettings
from llmhost.config.schema.server import ServerSettings
from llmhost.config.schema.state import BatchSettings
from llmhost.core.caller import Limits
from llmhost.hooks.spec import hookimpl
from llmhost.pipeline.batches import attempt
from llmhost.pipeline.batches import runner as batch_runner
from llmhost.pipeline.batches.record import BatchStatus, from_record
from llmhost.storage import state
from llmhost.storage.batches import Batches, LineResult
from llmhost.storage.connect import StorageFailed
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import Period
from llmhost.testing import FAKE_MODEL, TestHost, at, make_host

HELD = msgspec.structs.replace(HELD_MODEL, price=FAKE_MODEL.price)


def settings(**batches: Any) -> Settings:
    return Settings(server=ServerSettings(drain_timeout_s=5.0), batches=BatchSettings(**batches))


async def test_a_batch_goes_to_its_end_and_each_line_has_its_answer_in_order() -> None:
    async with make_host() as host:
        batch = await begin(host, [line(n) for n in range(30)], metadata={"a": "b"})
        assert (batch["status"], batch["metadata"]) == ("validating", {"a": "b"})
        done = await ended(host, batch)
        found = await lines_of(host, done["output_file_id"])
        single = await host.say("hello 7", max_tokens=4)

        assert done["status"] == "completed"
        assert done["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
        assert done["error_file_id"] is None
        assert done["model"] == "fake"
        assert [each["custom_id"] for each in found] == [f"id-{n}" for n in range(30)]
        assert found[7]["response"]["body"]["choices"][0]["message"]["content"] == single
        used = sum(each["response"]["body"]["usage"]["total_tokens"] for each in found)
        assert done["usage"]["total_tokens"] == used


async def test_completions_embeddings_and_responses_run_as_well() -> None:
    embedder = ModelSpec(engine="fake", options={"task": "embed"}, price=PriceSettings(input="1"))
    async with make_host(models={"fake": FAKE_MODEL, "embedder": embedder}) as host:
        url = "/v1/completions"
        told = await begin(host, [line(1, url, prompt="one two")], endpoint=url)
        url = "/v1/embeddings"
        embedding = {**line(1, url, model="embedder", input=["one", "two"])}
        del embedding["body"]["max_tokens"]
        embedded = await begin(host, [embedding], endpoint=url)

        url = "/v1/responses"
        response = line(1, url, input="hello there")
        response["body"]["max_output_tokens"] = response["body"].pop("max_tokens")
        refused = line(2, url, input="x", background=True)
        del refused["body"]["max_tokens"]
        asked = await begin(host, [response, refused], endpoint=url)

        done = await ended(host, asked)
        [asked_line] = await lines_of(host, done["output_file_id"])
        [refused_line] = await lines_of(host, done["error_file_id"])
        resource = asked_line["response"]["body"]
        assert (resource["object"], resource["store"]) == ("response", False)
        assert refused_line["response"]["body"]["error"]["param"] == "background"
        gone = await host.client.get(f"/v1/responses/{resource['id']}")
        assert gone.status_code == 404
        [told_line] = await lines_of(host, (await ended(host, told))["output_file_id"])
        [embedded_line] = await lines_of(host, (await ended(host, embedded))["output_file_id"])
        assert told_line["response"]["body"]["object"] == "text_completion"
        assert len(embedded_line["response"]["body"]["data"]) == 2


async def test_a_wrong_input_fails_the_batch_with_every_line_that_is_wrong() -> None:
    async with make_host() as host:
        batch = await begin(host, [line(1), b"{", line(1), {**line(2), "url": "/v1/embeddings"}])
        done = await ended(host, batch)

        assert done["status"] == "failed"
        assert [(each["code"], each["line"]) for each in done["errors"]["data"]] == [
            ("invalid_json_line", 2),
            ("duplicate_custom_id", 3),
            ("invalid_url", 4),
        ]
        assert (done["output_file_id"], done["request_counts"]["total"]) == (None, 0)
        assert host.entries() == []


async def test_lines_that_are_refused_are_in_the_error_file_and_the_others_run() -> None:
    lines = [
        line(1),
        line(2, temperature=9),
        line(3, model="nobody"),
        line(4, stream=True),
        line(5, messages="x"),
    ]
    async with make_host() as host:
        done = await ended(host, await begin(host, lines))
        errors = await lines_of(host, done["error_file_id"])

        assert done["request_counts"] == {"total": 5, "completed": 1, "failed": 4}
        assert [each["custom_id"] for each in errors] == ["id-2", "id-3", "id-4", "id-5"]
        told = [(e["response"]["status_code"], e["response"]["body"]["error"]) for e in errors]
        assert [(status, error["param"]) for status, error in told] == [
            (400, "temperature"),
            (404, "model"),
            (400, "stream"),
            (400, "messages"),
        ]
        outcomes = Counter(entry["outcome"] for entry in host.entries())
        assert outcomes == {"answered": 1, "refused": 4}


async def test_lines_cost_half_at_a_price_version_of_their_own_that_is_exact() -> None:
    async with make_host() as host:
        await ended(host, await begin(host, [line(1)]))
        await host.say("hello 1", max_tokens=4)
        batched, single = host.entries()
        body = line(1)["body"]
        whole = (await host.client.post("/v1/estimate", json=body)).json()
        half = (await host.client.post("/v1/estimate", json={**body, "batch": True})).json()

        assert batched["tokens"] == single["tokens"]
        assert batched["amount_nano"] * 2 == single["amount_nano"]
        assert (batched["price_version"], single["price_version"]) == ("fake+batch/1", "fake/1")
        assert batched["run_id"].startswith("batch_")
        assert float(half["max_cost_usd"]) * 2 == pytest.approx(float(whole["max_cost_usd"]))
        assert half["price_version"] == "fake+batch/1"


async def test_limits_do_not_count_lines_and_budgets_do() -> None:
    async with make_host() as host:
        key = await host.make_key(limits=Limits(requests_per_minute=1))
        budget = Budget(id="", org="acme", period=Period.DAY, limit_nano=6_500)
        await host.host.books.budgets.create(budget, who="operator")
        lines = [line(n) for n in range(12)]
        done = await ended(host, await begin(host, lines, key), key)
        errors = await lines_of(host, done["error_file_id"], key)

        assert done["status"] == "completed"
        counts = done["request_counts"]
        assert counts["completed"] > 1
        assert counts["failed"] > 1
        for each in errors:
            assert each["response"]["status_code"] == 429
            assert each["response"]["body"]["error"]["type"] == "insufficient_quota"
        spent = sum(entry["amount_nano"] for entry in host.entries())
        assert spent <= 6_500
        [(_, standing)] = host.host.books.budgets.accounts.org_standings(host.host.clock.utc_ns())
        assert (standing.spent, standing.held) == (spent, 0)


async def test_another_teams_files_and_batches_are_not_there() -> None:
    async with make_host() as host:
        mine, theirs = await host.make_key(team="red"), await host.make_key(team="blue")
        done = await ended(host, await begin(host, [line(1)], mine), mine)
        paths = [
            f"/v1/batches/{done['id']}",
            f"/v1/files/{done['input_file_id']}",
            f"/v1/files/{done['output_file_id']}/content",
        ]
        for path in paths:
            assert (await host.client.get(path, headers=bearing(mine))).status_code == 200
            assert (await host.client.get(path, headers=bearing(theirs))).status_code == 404
        for path in ("/v1/files", "/v1/batches"):
            assert len((await host.client.get(path, headers=bearing(mine))).json()["data"]) > 0
            assert (await host.client.get(path, headers=bearing(theirs))).json()["data"] == []
        cancel = f"/v1/batches/{done['id']}/cancel"
        assert (await host.client.post(cancel, headers=bearing(theirs))).status_code == 404
        assert (await host.client.post(cancel, headers=bearing(mine))).status_code == 409
        body = {
            "input_file_id": done["input_file_id"],
            "endpoint": CHAT,
            "completion_window": "24h",
        }
        stolen = await host.client.post("/v1/batches", json=body, headers=bearing(theirs))
        assert (stolen.status_code, stolen.json()["error"]["param"]) == (400, "input_file_id")


WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"endpoint": None}, "endpoint"),
    ({"endpoint": "/v1/audio/speech"}, "endpoint"),
    ({"completion_window": "1y"}, "completion_window"),
    ({"completion_window": None}, "completion_window"),
    ({"input_file_id": None}, "input_file_id"),
    ({"input_file_id": "file-nobody"}, "input_file_id"),
    ({"input_file_id": 7}, "input_file_id"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ({"output_expires_after": {"anchor": "x", "seconds": 3600}}, "output_expires_after.anchor"),
    ({"output_expires_after": {"anchor": "created_at"}}, "output_expires_after.seconds"),
)


async def test_what_is_wrong_with_a_batch_is_told_with_its_field() -> None:
    async with make_host() as host:
        file = await upload(host, text([line(1)]))
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        for change, param in WRONG:
            answer = await host.client.post("/v1/batches", json={**body, **change})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_file_of_another_purpose_is_no_input() -> None:
    async with make_host() as host:
        file = await upload(host, text([line(1)]), purpose="user_data")
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        answer = await host.client.post("/v1/batches", json=body)

        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_file_id")
        assert (await host.client.get("/v1/batches")).json()["data"] == []


async def test_a_file_that_a_batch_reads_can_not_be_deleted_and_can_be_afterwards() -> None:
    held = Held()
    async with make_host(plugins=[held], models={"fake": HELD}) as host:
        batch = await begin(host, [line(1)])
        path = f"/v1/files/{batch['input_file_id']}"
        refused = await host.client.delete(path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "file_in_use")
        held.go()
        await ended(host, batch)
        assert (await host.client.delete(path)).json()["deleted"] is True
        assert (await host.client.get(path)).status_code == 404


async def test_a_cancelled_batch_ends_its_lines_that_run_and_says_which_never_did() -> None:
    held = Held()
    models = {"fake": HELD}
    limits = settings(max_in_flight_per_batch=2)
    async with make_host(plugins=[held], models=models, settings=limits) as host:
        batch = await begin(host, [line(n) for n in range(5)])
        await until(lambda: host.host.metrics.batches.in_flight == 2)
        told = (await host.client.post(f"/v1/batches/{batch['id']}/cancel")).json()
        assert told["status"] == "cancelling"
        held.go()
        done = await ended(host, batch)
        errors = await lines_of(host, done["error_file_id"])

        assert done["status"] == "cancelled"
        assert done["request_counts"] == {"total": 5, "completed": 2, "failed": 0}
        assert len(await lines_of(host, done["output_file_id"])) == 2
        assert [each["error"]["code"] for each in errors] == ["batch_cancelled"] * 3
        assert len([e for e in host.entries() if e["outcome"] == "answered"]) == 2


async def test_a_cancel_that_was_told_is_not_written_over_by_the_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_check, may_tell, ended_from = threading.Event(), asyncio.Event(), list[str]()
    check, update, end = batch_runner.check_input, Batches.update, Batches.end

    def checking(*given: Any) -> Any:
        assert may_check.wait(20)
        return check(*given)

    async def updating(store: Batches, batch_id: str, record: bytes) -> None:
        await update(store, batch_id, record)
        if from_record(record).status is BatchStatus.CANCELLING:
            may_check.set()
            await may_tell.wait()

    async def ending(store: Batches, batch_id: str, *given: Any) -> None:
        ended_from.append(from_record(await store.find(batch_id) or b"").status)
        await end(store, batch_id, *given)

    monkeypatch.setattr(batch_runner, "check_input", checking)
    monkeypatch.setattr(Batches, "update", updating)
    monkeypatch.setattr(Batches, "end", ending)
    async with make_host() as host:
        batch = await begin(host, [line(1)])
        cancelling = asyncio.create_task(host.client.post(f"/v1/batches/{batch['id']}/cancel"))
        await asyncio.to_thread(may_check.wait, 20)
        for _ in range(20):  # what would be written over the cancel has its chance
            await host.host.deferred.batches.store.settle_down()
        may_tell.set()
        told = (await cancelling).json()
        done = await ended(host, batch)

        assert (told["status"], done["status"]) == ("cancelling", "cancelled")
        assert ended_from == ["cancelling"]
        assert done["cancelling_at"] == told["cancelling_at"] is not None


async def test_what_still_runs_after_the_grace_of_a_cancel_is_dropped_and_free() -> None:
    held = Held()
    limits = settings(max_in_flight_per_batch=1, grace_s=0.0)
    async with make_host(plugins=[held], models={"fake": HELD}, settings=limits) as host:
        batch = await begin(host, [line(n) for n in range(2)])
        await until(lambda: host.host.metrics.batches.in_flight == 1)
        await host.client.post(f"/v1/batches/{batch['id']}/cancel")
        done = await ended(host, batch)
        held.go()
        await until(lambda: host.host.processor.in_flight == 0)

        assert (done["status"], done["request_counts"]["completed"]) == ("cancelled", 0)
        assert len(await lines_of(host, done["error_file_id"])) == 2
        assert sum(entry["amount_nano"] for entry in host.entries()) == 0
        assert not [e for e in host.entries() if e["request_id"].endswith("_1")]


async def test_what_was_made_of_a_line_that_is_dropped_is_on_no_bill_nor_charged_by_a_rerating():
    limits = settings(max_in_flight_per_batch=1, grace_s=0.0)
    slow = ModelSpec(engine="fake", options={"token_delay_ms": 5.0}, price=FAKE_MODEL.price)
    clock = at("2026-03-01T12:00")
    async with make_host(models={"fake": slow}, settings=limits, clock=clock) as host:
        batch = await begin(host, [line(1, max_tokens=2_000)])
        await until(lambda: any(live.stream.so_far() for live in host.host.processor._live))
        await host.client.post(f"/v1/batches/{batch['id']}/cancel")
        await ended(host, batch)
        await until(lambda: host.host.processor.in_flight == 0)
        await until(lambda: bool(host.entries()))
        [entry] = host.entries()
        problems, rerated = await bill_of(host)

    assert (entry["amount_nano"], entry["tokens"]["output"] > 0) == (0, True)
    assert (problems, rerated) == ([], 0)


async def test_a_batch_whose_time_is_over_expires_with_what_it_has() -> None:
    clock = at("2026-03-01T12:00")
    held = Held()
    limits = settings(max_in_flight_per_batch=1)
    async with make_host(
        plugins=[held], models={"fake": HELD}, settings=limits, clock=clock
    ) as host:
        batch = await begin(host, [line(n) for n in range(3)], completion_window="1h")
        await until(lambda: host.host.metrics.batches.in_flight == 1)
        clock.advance(3601)
        held.go()
        done = await ended(host, batch)
        errors = await lines_of(host, done["error_file_id"])

        assert done["status"] == "expired"
        assert done["expired_at"] >= done["expires_at"] == done["created_at"] + 3600
        assert done["request_counts"] == {"total": 3, "completed": 1, "failed": 0}
        assert [each["error"]["code"] for each in errors] == ["batch_expired"] * 2


async def test_a_key_that_ends_stops_its_batch() -> None:
    held = Held()
    limits = settings(max_in_flight_per_batch=1)
    async with make_host(plugins=[held], models={"fake": HELD}, settings=limits) as host:
        key, other = await host.make_key(), await host.make_key()
        batch = await begin(host, [line(n) for n in range(3)], key)
        await until(lambda: host.host.metrics.batches.in_flight == 1)
        await host.host.books.keys.revoke(host.host.books.keys.find(key).key_id or "")
        held.go()
        done = await ended(host, batch, other)

        assert (done["status"], done["request_counts"]["completed"]) == ("failed", 1)
        assert [each["code"] for each in done["errors"]["data"]] == ["invalid_api_key"]
        assert len(await lines_of(host, done["output_file_id"], other)) == 1


async def test_a_step_that_fails_is_tried_again_and_paid_for_once() -> None:
    held = Held(is_free=True)
    failures = iter([RuntimeError("once")])
    held.fails = lambda seq_id, position: next(failures, None) if position > 3 else None
    async with make_host(plugins=[held], models={"fake": HELD}) as host:
        done = await ended(host, await begin(host, [line(1)]))

        assert done["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
        entries = host.entries()
        assert sorted(entry["outcome"] for entry in entries) == ["answered", "failed"]
        assert len({entry["request_id"] for entry in entries}) == 2
        [paid] = [entry for entry in entries if entry["amount_nano"]]
        assert paid["request_id"].endswith("_1")


class Prices:
    """A plugin that sees what lines are offered at."""

    def __init__(self) -> None:
        self.seen: list[tuple[str | None, int]] = []

    @hookimpl
    def quote_price(self, request: Any, price: Any) -> None:
        self.seen.append((request.batch, price.output))


async def test_plugins_see_that_a_request_is_a_line_and_its_price() -> None:
    prices = Prices()
    async with make_host(plugins=[prices]) as host:
        batch = await begin(host, [line(1)])
        await ended(host, batch)
        assert prices.seen == [(batch["id"], 200_000_000)]


# ------------------------------------------------------------ kills


def _holding(reached: asyncio.Event, stop_at: Callable[..., bool], after: bool) -> Any:
    """Wraps a method so that it never comes back, for whom `stop_at` says so."""

    def wrap(method: Any) -> Any:
        async def held(self: Any, *given: Any) -> Any:
            is_it = stop_at(*given)
            answer = None if is_it and not after else await method(self, *given)
            if is_it:
                reached.set()
                await asyncio.Event().wait()
            return answer

        return held

    return wrap


def _kill_at(point: str, reached: asyncio.Event, patch: pytest.MonkeyPatch) -> None:
    """Have line 3 stop for ever at one of its steps."""
    if point in ("before it is kept", "after it is kept"):
        hold = _holding(reached, lambda result: result.line == 3, point.startswith("after"))
        patch.setattr(Batches, "keep", hold(Batches.keep))
    elif point in ("after it is booked", "after it is counted"):
        is_after = point == "after it is counted"
        hold = _holding(reached, lambda batch, number: number == 3, is_after)
        patch.setattr(Batches, "booked", hold(Batches.booked))


KILLS = ("before it is kept", "after it is kept", "after it is booked", "after it is counted")


@pytest.mark.parametrize("point", KILLS)
async def test_killed_at_any_step_of_a_line_the_next_process_ends_it_once(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, budget = (
        asyncio.Event(),
        Budget(id="", org="acme", period=Period.DAY, limit_nano=10**9),
    )
    with monkeypatch.context() as patch:
        _kill_at(point, reached, patch)
        async with make_host(data_dir=tmp_path / "before") as host:
            key = await host.make_key()
            await host.host.books.budgets.create(budget, who="operator")
            batch = await begin(host, [line(n) for n in range(1, 7)], key)
            runner = host.host.deferred.runner
            await asyncio.wait_for(reached.wait(), 60)
            await until(lambda: _completed(host, batch["id"]) == 5)
            shutil.copytree(tmp_path / "before", tmp_path / "after")  # as a kill leaves it
            for task in list(runner._tasks):
                task.cancel()

    async with make_host(data_dir=tmp_path / "after") as host:
        done = await ended(host, batch, key)
        found = await lines_of(host, done["output_file_id"], key)
        entries = [entry for entry in host.entries() if entry["amount_nano"]]

        assert done["status"] == "completed"
        assert done["request_counts"] == {"total": 6, "completed": 6, "failed": 0}
        assert [each["custom_id"] for each in found] == [f"id-{n}" for n in range(1, 7)]
        paid = {entry["request_id"]: entry for entry in entries}
        assert len(paid) == len(entries) == 6
        for each in found:
            entry, response = paid[each["response"]["request_id"]], each["response"]
            assert entry["tokens"]["output"] == response["body"]["usage"]["completion_tokens"]
        spent = sum(entry["amount_nano"] for entry in entries)
        [(_, standing)] = host.host.books.budgets.accounts.org_standings(host.host.clock.utc_ns())
        assert (standing.spent, standing.held) == (spent, 0)
        assert host.host.books.ledger.verify().broken is None


async def test_an_entry_that_the_ledger_is_about_to_write_is_not_charged_twice() -> None:
    held = Held()
    limits = settings(max_in_flight_per_batch=1, grace_s=0.0)
    may_write = threading.Event()
    budget = Budget(id="", org="acme", period=Period.DAY, limit_nano=10**9)
    async with make_host(plugins=[held], models={"fake": HELD}, settings=limits) as host:
        key = await host.make_key()
        await host.host.books.budgets.create(budget, who="operator")
        batch = await begin(host, [line(1), line(2)], key)
        await until(lambda: host.host.processor._live)
        writer = host.host.books.ledger._writer
        busy = writer.submit(lambda _: may_write.wait(20))
        await until(lambda: not writer.waiting)
        held.go()
        await until(lambda: writer.waiting)
        await host.client.post(f"/v1/batches/{batch['id']}/cancel", headers=bearing(key))
        for _ in range(20):  # it would be booked again now
            await host.host.deferred.batches.store.settle_down()
        may_write.set()
        await asyncio.wrap_future(busy)
        done = await ended(host, batch, key)
        spent = sum(entry["amount_nano"] for entry in host.entries())
        [(_, standing)] = host.host.books.budgets.accounts.org_standings(host.host.clock.utc_ns())

        assert done["request_counts"]["completed"] == 1
        assert spent > 0
        assert (standing.spent, standing.held) == (spent, 0)


async def test_a_stop_amid_a_batch_leaves_it_to_the_next_process(tmp_path: Path) -> None:
    held = Held()
    limits = Settings(
        server=ServerSettings(drain_timeout_s=0.0), batches=BatchSettings(max_in_flight_per_batch=2)
    )
    async with make_host(
        data_dir=tmp_path, plugins=[held], models={"fake": HELD}, settings=limits
    ) as host:
        batch = await begin(host, [line(n) for n in range(4)])
        await until(lambda: host.host.metrics.batches.in_flight == 2)
        stopping = asyncio.create_task(host.host.drain(0.0))
        await asyncio.sleep(0)
        held.go()
        await stopping

    held = Held(is_free=True)
    async with make_host(data_dir=tmp_path, plugins=[held], models={"fake": HELD}) as host:
        done = await ended(host, batch)
        assert done["request_counts"] == {"total": 4, "completed": 4, "failed": 0}
        paid = Counter(e["request_id"] for e in host.entries() if e["amount_nano"])
        assert len(paid) == 4
        assert set(paid.values()) == {1}


def _completed(host: TestHost, batch_id: str) -> int:
    job = host.host.deferred.runner._jobs.get(batch_id)
    return -1 if job is None else job.batch.tally.completed


# -- a disk that refuses what was committed ---------------------------------------------------------------------------


def refuse(_: Path) -> None:
    raise StorageFailed(Path("state.db"), OSError("Input/output error"))


async def test_a_batch_that_could_not_be_forced_to_disk_was_never_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its caller asks again: run after a restart, it would be run twice."""
    async with make_host() as host:
        file = await upload(host, text([line(1)]))
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        with monkeypatch.context() as patch:
            patch.setattr(state, "_force", refuse)
            refused = await host.client.post("/v1/batches", json=body)
        live = await host.host.deferred.runner._store.live()
        deleted = await host.client.delete(f"/v1/files/{file['id']}")

        assert (refused.status_code, live) == (503, [])
        assert deleted.status_code == 200, "nobody holds it"


async def test_lines_that_wait_for_the_disk_say_so_once_and_are_kept_in_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keep, tries = Batches.keep, Counter[int]()

    async def keep_late(store: Batches, result: LineResult) -> None:
        tries[result.line] += 1
        if tries[result.line] <= 3:
            raise StorageFailed(Path("state.db"), OSError("full"))
        await keep(store, result)

    monkeypatch.setattr(Batches, "keep", keep_late)
    monkeypatch.setattr(attempt, "FIRST_PAUSE_S", 0.01)
    async with make_host() as host:
        done = await ended(host, await begin(host, [line(1), line(2)]))

    assert (done["status"], set(tries.values())) == ("completed", {4})
    said = [record.getMessage() for record in caplog.records if "unkept" in record.getMessage()]
    assert len(said) == 2


async def test_a_batch_whose_end_could_not_be_forced_has_ended_and_has_its_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = Batches.end

    async def unforced(*args: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(state, "_force", refuse)
            await end(*args)

    monkeypatch.setattr(Batches, "end", unforced)
    async with make_host() as host:
        done = await ended(host, await begin(host, [line(1), line(2)]))

        assert done["status"] == "completed"
        assert len(await lines_of(host, done["output_file_id"])) == 2
