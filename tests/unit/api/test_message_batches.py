"""Anthropic's batches in a whole node: how they are asked for, what is told of them, and who sees them."""

import asyncio
import json
from typing import Any

import msgspec
from tests.unit.pipeline.batch_node import WAIT_S, bearing, begin
from tests.unit.pipeline.node import HELD_MODEL, Held, until

from llmhost.api.message_batches.wire import read_lines
from llmhost.config.schema import Settings
from llmhost.config.schema.money import PriceSettings
from llmhost.config.schema.server import ServerSettings
from llmhost.config.schema.state import BatchSettings
from llmhost.pipeline.batches.lines import Check
from llmhost.testing import FAKE_MODEL, TestHost, make_host

PATH = "/v1/messages/batches"
Json = dict[str, Any]


def request(number: int, **params: Any) -> Json:
    said = [{"role": "user", "content": f"hello {number}"}]
    return {
        "custom_id": f"id-{number}",
        "params": {"model": "fake", "max_tokens": 4, "messages": said, **params},
    }


async def create(host: TestHost, requests: list[Any], key: str | None = None) -> Json:
    answer = await host.client.post(PATH, json={"requests": requests}, headers=bearing(key))
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


async def read(host: TestHost, batch_id: str, key: str | None = None) -> Json:
    found: Json = (await host.client.get(f"{PATH}/{batch_id}", headers=bearing(key))).json()
    return found


async def ended(host: TestHost, batch: Json, key: str | None = None) -> Json:
    runner = host.host.deferred.runner
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*(task for task in runner._tasks if batch["id"] in task.get_name()))
    return await read(host, batch["id"], key)


async def results(host: TestHost, batch: Json) -> dict[str, Json]:
    answer = await host.client.get(batch["results_url"])
    assert answer.headers["content-type"] == "application/x-jsonl"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    return {line["custom_id"]: line["result"] for line in lines}


async def test_requests_end_with_messages_or_errors_of_anthropics_shape() -> None:
    async with make_host() as host:
        asked = [request(1), request(2, max_tokens=-1), request(3, stream=True)]
        batch = await create(host, [*asked, request(4, model="none")])
        assert (batch["type"], batch["processing_status"]) == ("message_batch", "in_progress")
        assert batch["request_counts"]["processing"] == 4
        assert batch["results_url"] is None
        done = await ended(host, batch)
        told = await results(host, done)
        single = await host.client.post("/v1/messages", json=request(1)["params"])

    counts = {"processing": 0, "succeeded": 1, "errored": 3, "canceled": 0, "expired": 0}
    assert (done["processing_status"], done["request_counts"]) == ("ended", counts)
    assert done["ended_at"].endswith("Z")
    assert told["id-1"]["type"] == "succeeded"
    assert told["id-1"]["message"]["content"] == single.json()["content"]
    errors = {name: each["error"] for name, each in told.items() if each["type"] == "errored"}
    assert errors["id-2"]["type"] == "error"
    assert errors["id-2"]["error"]["type"] == "invalid_request_error"
    assert errors["id-2"]["request_id"].startswith("req_")
    assert errors["id-3"]["error"]["details"]["param"] == "stream"
    assert errors["id-4"]["error"]["type"] == "not_found_error"


REFUSED: list[tuple[Json, str]] = [
    ({}, "requests"),
    ({"requests": []}, "requests"),
    ({"requests": [request(n) for n in range(4)]}, "requests"),
    ({"requests": [request(1), {"params": {}}]}, "requests[1].custom_id"),
    ({"requests": [{**request(1), "custom_id": "a b"}]}, "requests[0].custom_id"),
    ({"requests": [request(1), request(1)]}, "requests[1].custom_id"),
    ({"requests": [{"custom_id": "a"}]}, "requests[0].params"),
    ({"requests": [{"custom_id": "a", "params": [1]}]}, "requests[0].params"),
]


async def test_results_that_were_deleted_have_no_url() -> None:
    async with make_host() as host:
        done = await ended(host, await create(host, [request(1)]))
        files = (await host.client.get("/v1/files")).json()["data"]
        for file in files:
            (await host.client.delete(f"/v1/files/{file['id']}")).raise_for_status()
        now = await read(host, done["id"])
        [listed] = (await host.client.get(PATH)).json()["data"]
        gone = await host.client.get(done["results_url"])

    assert done["results_url"] is not None
    assert (now["processing_status"], now["results_url"]) == ("ended", None)
    assert listed == now
    assert (gone.status_code, gone.json()["error"]["type"]) == (404, "not_found_error")


async def test_what_can_not_be_a_batch_is_refused_at_once() -> None:
    async with make_host(settings=Settings(batches=BatchSettings(max_lines=3))) as host:
        answers = [await host.client.post(PATH, json=body) for body, _ in REFUSED]
        left = await host.host.deferred.files.files.total()
    errors = [answer.json()["error"] for answer in answers]
    assert {answer.status_code for answer in answers} == {400}
    assert {error["type"] for error in errors} == {"invalid_request_error"}
    assert [error["details"]["param"] for error in errors] == [param for _, param in REFUSED]
    assert left == (0, 0)


def test_a_request_as_long_as_one_may_be_is_a_line_that_can_run() -> None:
    body = msgspec.json.encode({"requests": [request(1)]})
    (line,) = read_lines(body, most=1, longest_bytes=2**20)

    assert read_lines(body, most=1, longest_bytes=len(line)) == [line]
    check = Check("/v1/messages", most_lines=1, longest_bytes=len(line))
    check.look(line + b"\n", 1)
    assert check.faults == []


async def test_a_canceled_batch_says_of_each_request_what_became_of_it_and_can_be_deleted() -> None:
    held = Held()
    limits = Settings(
        server=ServerSettings(drain_timeout_s=5.0), batches=BatchSettings(max_in_flight=1)
    )
    async with make_host(settings=limits, models={"fake": HELD_MODEL}, plugins=[held]) as host:
        batch = await create(host, [request(n) for n in range(3)])
        await until(lambda: host.host.metrics.batches.in_flight == 1)
        url = f"{PATH}/{batch['id']}"
        early = await host.client.get(f"{url}/results")
        unended = await host.client.delete(url)
        canceling = (await host.client.post(f"{url}/cancel")).json()
        held.go()
        done = await ended(host, batch)
        told = await results(host, done)
        again = await host.client.post(f"{url}/cancel")
        deleted = await host.client.delete(url)
        gone = await host.client.get(url)
        left = await host.host.deferred.files.files.total()

    assert (early.status_code, unended.status_code) == (400, 409)
    assert canceling["processing_status"] == "canceling"
    assert canceling["cancel_initiated_at"] is not None
    assert (done["request_counts"]["succeeded"], done["request_counts"]["canceled"]) == (1, 2)
    assert [each["type"] for each in told.values()] == ["succeeded", "canceled", "canceled"]
    assert (again.status_code, again.json()["error"]["type"]) == (409, "conflict_error")
    assert deleted.json() == {"id": batch["id"], "type": "message_batch_deleted"}
    assert (gone.status_code, left) == (404, (0, 0))


async def test_batches_are_listed_in_pages_both_ways_and_apart_from_openais() -> None:
    async with make_host() as host:
        made = [(await create(host, [request(n)]))["id"] for n in range(4)]
        other = await begin(host, [])
        newest_first = made[::-1]

        async def page(**query: Any) -> Json:
            found: Json = (await host.client.get(PATH, params=query)).json()
            return {**found, "data": [each["id"] for each in found["data"]]}

        assert await page(limit=2) == {
            **{"data": newest_first[:2], "has_more": True},
            **{"first_id": newest_first[0], "last_id": newest_first[1]},
        }
        after = await page(limit=2, after_id=newest_first[1])
        assert (after["data"], after["has_more"]) == (newest_first[2:], False)
        before = await page(limit=2, before_id=newest_first[3])
        assert (before["data"], before["has_more"]) == (newest_first[1:3], True)
        assert (await page(before_id=newest_first[0]))["data"] == []
        refused = await host.client.get(PATH, params={"limit": 0})
        unknown = await host.client.get(PATH, params={"after_id": "none"})
        openais = (await host.client.get("/v1/batches")).json()["data"]
        crossed = [f"{PATH}/{other['id']}", f"/v1/batches/{made[0]}"]
        missing = [(await host.client.get(url)).status_code for url in crossed]

    assert (refused.status_code, unknown.status_code) == (400, 400)
    assert [each["id"] for each in openais] == [other["id"]]
    assert missing == [404, 404]


async def test_a_batch_costs_half_and_is_its_teams_alone() -> None:
    priced = msgspec.structs.replace(FAKE_MODEL, price=PriceSettings(input="2", output="2"))
    async with make_host(models={"fake": priced}) as host:
        mine, theirs = await host.make_key("mine"), await host.make_key("theirs")
        batch = await create(host, [request(1)], mine)
        await ended(host, batch, mine)
        url = f"{PATH}/{batch['id']}"
        ways = [("GET", url), ("GET", f"{url}/results"), ("POST", f"{url}/cancel"), ("DELETE", url)]
        seen = [
            (await host.client.request(method, path, headers=bearing(theirs))).status_code
            for method, path in ways
        ]
        listed = (await host.client.get(PATH, headers=bearing(theirs))).json()["data"]
        await host.client.post("/v1/messages", json=request(1)["params"], headers=bearing(mine))
        amounts = [entry["amount_nano"] for entry in host.entries()]

    assert seen == [404] * 4
    assert listed == []
    assert 2 * amounts[0] == amounts[1] > 0
