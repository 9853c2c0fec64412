"""A node that knows what it costs: every request's part, the rest, and that all of it adds up."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmhost.config.schema import Settings
from llmhost.config.schema.money import CostSettings
from llmhost.config.schema.safety import SafetySettings
from llmhost.config.schema.server import ServerSettings
from llmhost.core.units import dollars_to_nano
from llmhost.safety.screen import OutputScreen
from llmhost.testing import FAKE_MODEL, TestHost, at, make_host

COSTS = CostSettings(
    cpu_per_hour="3600000",  # a nano-dollar for each picosecond: no share is lost in rounding
    host_per_hour="36",
    requests_per_load=3,
)


def settings(**costs: Any) -> Settings:
    changed = msgspec.structs.replace(COSTS, **costs)
    return Settings(server=ServerSettings(drain_timeout_s=5.0), costs=changed)


def nano_of(cost: dict[str, Any], pool: str) -> int:
    return dollars_to_nano(cost["breakdown"][pool])


async def rows(host: TestHost, by: str = "org") -> list[dict[str, Any]]:
    headers = {"authorization": f"Bearer {host.host.admin_token}"}
    answer = await host.client.get(f"/admin/v1/costs?by={by}", headers=headers)
    answer.raise_for_status()
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


async def test_the_parts_of_an_answers_cost_add_up_to_its_total() -> None:
    async with make_host(settings=settings()) as host:
        usage = (await host.chat("hello there", max_tokens=5, include_cost=True)).json()["usage"]

    cost = usage["cost"]
    assert dollars_to_nano(cost["total_cost_usd"]) == sum(
        nano_of(cost, pool) for pool in cost["breakdown"]
    )
    assert nano_of(cost, "gpu_compute") > 0
    assert nano_of(cost, "infrastructure") > 0
    assert nano_of(cost, "model_loading") > 0
    assert cost["model_loading_is_provisional"]


async def test_what_was_told_is_what_was_booked() -> None:
    async with make_host(settings=settings()) as host:
        answers = [await host.chat("hi", max_tokens=3, include_cost=True) for _ in range(4)]
        [row] = await rows(host)

    told = [answer.json()["usage"]["cost"]["total_cost_usd"] for answer in answers]
    assert row["cost_nano"] == sum(map(dollars_to_nano, told))
    assert row["requests"] == 4
    assert row["margin_nano"] == row["amount_nano"] - row["cost_nano"]


async def test_a_load_is_borne_by_the_expected_requests_and_by_none_after_them() -> None:
    async with make_host(settings=settings()) as host:
        answers = [await host.chat("hi", max_tokens=1, include_cost=True) for _ in range(4)]

    told = [nano_of(answer.json()["usage"]["cost"], "model_loading") for answer in answers]
    assert max(told[:3]) - min(told[:3]) <= 1
    assert told[3] == 0


@pytest.mark.parametrize("asks", ["field", "header"])
@pytest.mark.parametrize("stream", [False, True])
async def test_cost_is_told_to_those_who_ask(asks: str, stream: bool) -> None:
    async with make_host(settings=settings()) as host:
        body = {
            "model": "fake",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": stream,
            "max_tokens": 3,
            **({"include_cost": True} if asks == "field" else {}),
        }
        headers = {"x-llmhost-cost": "breakdown"} if asks == "header" else {}
        answer = await host.client.post("/v1/chat/completions", json=body, headers=headers)

    if stream:
        *_, last, _ = answer.text.strip().split("\n\n")
        shown = json.loads(last.removeprefix("data: "))["usage"]
    else:
        shown = answer.json()["usage"]
    assert nano_of(shown["cost"], "gpu_compute") > 0


async def test_nobody_else_hears_of_it() -> None:
    async with make_host(settings=settings()) as host:
        plain = (await host.chat("hi", max_tokens=2)).json()["usage"]
    async with make_host(settings=settings(shown_to_callers=False)) as host:
        hidden = (await host.chat("hi", max_tokens=2, include_cost=True)).json()["usage"]

    assert "cost" not in plain
    assert "cost" not in hidden


async def test_without_costs_all_is_nothing_and_no_row_is_written() -> None:
    async with make_host() as host:
        cost = (await host.chat("hi", max_tokens=2, include_cost=True)).json()["usage"]["cost"]
        [row] = await rows(host)
        readings = await host.host.costs.check()

    assert cost["total_cost_usd"] == "0.00"
    assert (row["cost_nano"], row["requests"]) == (0, 1)
    assert row["amount_nano"] > 0
    assert all(reading.error_nano == 0 for reading in readings)


async def test_bytes_that_are_sent_are_borne_by_whom_they_are_sent_to() -> None:
    clock = at("2026-01-10T12:00Z")
    costs = CostSettings(egress_per_gib="1073741824")  # a dollar for each byte
    async with make_host(settings=Settings(costs=costs), clock=clock) as host:
        await host.say("hi", max_tokens=3)
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        body |= {"max_tokens": 3, "include_cost": True}
        answer = await host.client.post("/v1/chat/completions", json=body)
        host.host.costs.infrastructure.bring_up_to_date()
        pool = host.host.costs.infrastructure.egress
        [row] = await rows(host)

    assert pool.meter.units >= len(answer.content)
    assert pool.meter.nano == pool.meter.units * 10**9
    assert row["infrastructure_nano"] + pool.unowned_nano + pool.rest == pool.meter.nano


async def test_devices_add_up_while_answers_run_and_are_cut() -> None:
    models = {"fake": FAKE_MODEL, "other": FAKE_MODEL}
    async with make_host(settings=settings(), models=models) as host:
        running = [
            asyncio.create_task(host.chat(f"number {i}", model=model, max_tokens=40))
            for i in range(12)
            for model in models
        ]
        for task in running[::3]:
            await asyncio.sleep(0)
            task.cancel()
        during = await host.host.costs.check()
        await asyncio.gather(*running, return_exceptions=True)
        after = await host.host.costs.check()
        text = (await host.client.get("/metrics")).text

    assert [r.error_nano for r in (*during, *after)] == [0] * (len(during) + len(after))
    [stand_in] = [r for r in after if r.device == "none"]
    assert stand_in.callers_nano > 0
    assert 'llmhost_cost_conservation_error_nano{device="none"} 0.0' in text


async def test_an_hour_of_the_clock_is_checked_and_kept(tmp_path: Path) -> None:
    clock = at("2026-01-10T12:00Z")
    async with make_host(settings=settings(), clock=clock, data_dir=tmp_path) as host:
        await host.host.costs.check()
        clock.advance(3_600)
        await host.host.costs.check()
        headers = {"authorization": f"Bearer {host.host.admin_token}"}
        data = (await host.client.get("/admin/v1/costs/devices", headers=headers)).json()["data"]

    [cpu] = [row for row in data if row["device"] == "cpu:0"]
    assert cpu["idle_ns"] == 3_600 * 10**9
    assert cpu["idle_nano"] == 3_600_000 * 10**9
    assert cpu["error_nano"] == 0


async def test_a_load_is_made_good_when_its_model_is_unloaded(tmp_path: Path) -> None:
    async with make_host(settings=settings(requests_per_load=1_000), data_dir=tmp_path) as host:
        await host.say("hi", max_tokens=1)
        [before] = await rows(host)
        await host.host.deployments.find("fake").unload(drain_s=5, reason="operator")
        [after] = await rows(host)

    assert before["provisional_nano"] == before["model_loading_nano"] > 0
    assert after["provisional_nano"] == 0
    assert after["model_loading_nano"] > 900 * before["model_loading_nano"]


@pytest.mark.parametrize("by", ["nobody", "key; DROP TABLE entries"])
async def test_an_unknown_group_is_refused(by: str) -> None:
    async with make_host() as host:
        headers = {"authorization": f"Bearer {host.host.admin_token}"}
        answer = await host.client.get("/admin/v1/costs", params={"by": by}, headers=headers)
        stranger = await host.client.get("/admin/v1/costs")

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "by"
    assert stranger.status_code == 401


async def test_vectors_have_a_cost_too() -> None:
    embedder = msgspec.structs.replace(FAKE_MODEL, options={"task": "embed"})
    async with make_host(settings=settings(), models={"fake": embedder}) as host:
        body = {"model": "fake", "input": ["one", "two words"], "include_cost": True}
        answer = (await host.client.post("/v1/embeddings", json=body)).json()

    cost = answer["usage"]["cost"]
    assert nano_of(cost, "gpu_compute") > 0
    assert cost["cost_per_output_token"] == "0.00"


async def check_that_all_is_borne(host: TestHost) -> None:
    """What callers' sequences cost is what requests bear, now that the engine has said its last word of all."""
    [deployment] = host.host.deployments.all()
    engine: Any = deployment.replicas[0].engine
    for _ in range(2):  # what was said before the first has been heard before the second
        await engine.call(lambda: None)
    readings = await host.host.costs.check()

    assert all(reading.error_nano == 0 for reading in readings)
    borne = sum(row["gpu_compute_nano"] for row in await rows(host))
    assert sum(reading.callers_nano for reading in readings) == borne


async def test_choices_that_had_begun_when_there_was_no_room_for_the_rest_are_the_operators() -> (
    None
):
    full = msgspec.structs.replace(FAKE_MODEL, max_batch_size=1, max_queue=1)
    async with make_host(settings=settings(), models={"fake": full}) as host:
        answer = await host.chat("hi", max_tokens=2_000, n=5)
        assert answer.status_code == 503
        await check_that_all_is_borne(host)


async def test_an_answer_whose_screen_fails_is_the_operators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: OutputScreen, text: str) -> str:
        raise ZeroDivisionError

    for way in ("push", "pass_whole"):  # a long answer's, and one's that is judged in one go
        monkeypatch.setattr(OutputScreen, way, fail)
    safe = SafetySettings(window_chars=16, blocked_words=("no",))
    async with make_host(settings=msgspec.structs.replace(settings(), safety=safe)) as host:
        for max_tokens in (1, 2_000):  # the first fails at its last word
            assert (await host.chat("hi", max_tokens=max_tokens)).status_code == 503
        await check_that_all_is_borne(host)


async def test_a_report_of_devices_is_of_now(tmp_path: Path) -> None:
    clock = at("2026-01-10T12:00Z")
    async with make_host(settings=settings(), clock=clock, data_dir=tmp_path) as host:
        headers = {"authorization": f"Bearer {host.host.admin_token}"}
        idle = []
        for seconds in (30, 5, 30):  # the second is too soon to be looked at again
            clock.advance(seconds)
            answer = await host.client.get("/admin/v1/costs/devices", headers=headers)
            [cpu] = [row for row in answer.json()["data"] if row["device"] == "cpu:0"]
            idle.append(cpu["idle_ns"] // 10**9)

    assert idle == [30, 30, 65]
