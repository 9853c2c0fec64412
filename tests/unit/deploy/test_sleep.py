"""A model that sleeps: who asks wakes it, what fails leaves it where it can be had, and its memory is leased once."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.deploy.fakes import Stage, facts, settle
from tests.unit.deploy.test_effects import Box, first_token, toy

from llmhost.api.admin import Admin
from llmhost.core.errors import (
    Conflict,
    DoesNotFit,
    EngineFailed,
    ModelUnavailable,
    OutOfMemory,
    Overloaded,
)
from llmhost.deploy.catalogue import Catalogue
from llmhost.deploy.deployment import State
from llmhost.deploy.manager import Deployments
from llmhost.hooks.registry import Plugins
from llmhost.observe.clock import SystemClock

NO_KEYS = SimpleNamespace(directory=None)
"""What stands for the keys of an admin who is not asked about them."""


async def asleep() -> Stage:
    stage = Stage()
    await stage.deployment.ensure_ready()
    await stage.deployment.sleep(drain_s=30, reason="operator")
    return stage


async def test_a_sleeping_model_is_woken_by_a_request_and_loads_nothing() -> None:
    stage = await asleep()
    assert stage.deployment.state is State.ASLEEP
    await asyncio.gather(*(stage.deployment.ensure_ready() for _ in range(20)))

    assert stage.effects.done == ["load", "sleep 30", "wake"]
    assert stage.states == ["loading", "ready", "draining", "asleep", "waking", "ready"]
    assert stage.deployment.least_busy() is stage.deployment.replicas[0]


async def test_nothing_is_routed_to_a_model_that_sleeps() -> None:
    stage = await asleep()
    with pytest.raises(ModelUnavailable, match="m@1 is asleep: operator"):
        stage.deployment.least_busy()


async def test_an_operator_wakes_a_model_and_a_second_time_does_nothing() -> None:
    stage = await asleep()
    await stage.deployment.wake("operator")
    await stage.deployment.wake("operator")

    assert stage.effects.done == ["load", "sleep 30", "wake"]
    assert stage.deployment.reason == "operator"


async def test_sleeping_twice_sleeps_once() -> None:
    stage = await asleep()
    await stage.deployment.sleep(drain_s=1, reason="operator")

    assert stage.effects.done == ["load", "sleep 30"]


async def test_a_request_while_a_model_goes_to_sleep_wakes_it_afterwards() -> None:
    stage = Stage()
    await stage.deployment.ensure_ready()
    stage.effects.unload_gate.clear()
    sleep = asyncio.create_task(stage.deployment.sleep(drain_s=30, reason="operator"))
    await settle()
    request = asyncio.create_task(stage.deployment.ensure_ready())
    await settle()
    assert not request.done()
    stage.effects.unload_gate.set()
    await asyncio.gather(sleep, request)

    assert stage.effects.done == ["load", "sleep 30", "wake"]


async def test_a_model_that_is_not_loaded_can_neither_sleep_nor_wake() -> None:
    stage = Stage()
    with pytest.raises(Conflict, match="m@1 is absent; only a loaded model can be put to sleep"):
        await stage.deployment.sleep(drain_s=1, reason="operator")
    with pytest.raises(Conflict, match="m@1 is absent, not asleep"):
        await stage.deployment.wake("operator")

    assert stage.events == []


async def test_a_model_that_can_not_sleep_is_not_drained() -> None:
    stage = Stage()
    await stage.deployment.ensure_ready()
    stage.effects.sleep_refusal = Conflict("nothing is gained")
    with pytest.raises(Conflict, match="nothing is gained"):
        await stage.deployment.sleep(drain_s=1, reason="operator")

    assert stage.states == ["loading", "ready"]
    assert stage.deployment.replicas


async def test_without_room_on_the_host_a_model_stays_ready() -> None:
    stage = Stage()
    await stage.deployment.ensure_ready()
    stage.effects.fails = [DoesNotFit("m@1 (asleep) needs 9 GiB on cpu:0")]
    with pytest.raises(DoesNotFit):
        await stage.deployment.sleep(drain_s=1, reason="operator")

    assert stage.deployment.state is State.READY
    assert "needs 9 GiB" in stage.deployment.reason
    stage.deployment.least_busy()


async def test_an_engine_that_breaks_down_on_its_way_to_sleep_is_loaded_afresh() -> None:
    stage = Stage()
    await stage.deployment.ensure_ready()
    stage.effects.fails = [EngineFailed("device lost")]
    with pytest.raises(EngineFailed):
        await stage.deployment.sleep(drain_s=1, reason="operator")
    assert stage.deployment.state is State.FAILED
    await stage.deployment.ensure_ready()

    assert stage.effects.held == 1
    assert stage.effects.done == ["load", "sleep 1", "unload 0", "unloaded", "load"]


@pytest.mark.parametrize("failure", [DoesNotFit("needs 9 GiB"), OutOfMemory("cuda:0")])
async def test_without_room_on_the_device_a_model_sleeps_on_and_the_next_request_tries_again(
    failure: Exception,
) -> None:
    stage = await asleep()
    stage.effects.fails = [failure]
    with pytest.raises(type(failure)):
        await stage.deployment.ensure_ready()
    assert stage.deployment.state is State.ASLEEP
    assert stage.deployment.reason == str(failure)
    await stage.deployment.ensure_ready()

    assert stage.deployment.state is State.READY
    assert stage.effects.done.count("load") == 1


async def test_a_model_that_can_not_be_woken_is_given_up_and_loaded_afresh() -> None:
    stage = await asleep()
    stage.effects.fails = [RuntimeError("device lost")]
    with pytest.raises(RuntimeError):
        await stage.deployment.ensure_ready()
    assert stage.deployment.state is State.FAILED
    await stage.deployment.ensure_ready()

    assert stage.effects.held == 1
    assert stage.effects.done[-3:] == ["unload 0", "unloaded", "load"]


async def test_a_sleeping_model_can_be_unloaded() -> None:
    stage = await asleep()
    await stage.deployment.unload(drain_s=5, reason="shutdown")

    assert stage.deployment.held is None
    assert stage.effects.held == 0
    assert stage.states[-2:] == ["draining", "absent"]


async def test_a_shutdown_while_a_model_wakes_refuses_who_waits_and_gives_all_back() -> None:
    stage = await asleep()
    stage.effects.gate.clear()
    request = asyncio.create_task(stage.deployment.ensure_ready())
    await settle()
    stage.deployment.stop_loading()
    with pytest.raises(Overloaded):
        await request
    assert stage.deployment.state is State.ASLEEP
    await stage.deployment.unload(drain_s=0, reason="shutdown")

    assert stage.effects.held == 0


async def test_events_say_how_long_a_sleep_and_a_wake_took_and_what_moved() -> None:
    stage = Stage()
    await stage.deployment.ensure_ready()
    stage.effects.unload_gate.clear()
    sleep = asyncio.create_task(stage.deployment.sleep(drain_s=30, reason="operator"))
    await settle()
    stage.clock.advance(1.5)
    stage.effects.unload_gate.set()
    await sleep
    event = stage.events[-1]
    assert (event.state, event.took_s, event.bytes) == ("asleep", 1.5, 100)
    stage.effects.gate.clear()
    request = asyncio.create_task(stage.deployment.ensure_ready())
    await settle()
    stage.clock.advance(0.25)
    stage.effects.gate.set()
    await request

    assert (stage.events[-1].took_s, stage.events[-1].bytes) == (0.25, 120)


# ------------------------------------------------------------ what it does to memory


@pytest.fixture
def box(tmp_path: Path) -> Box:
    one = Box(tmp_path)
    one.toy.facts = facts(device="toy:0", can_sleep=True)
    return one


def leases(box: Box, device: str) -> dict[str, int]:
    memory = box.devices.memory(device)
    assert memory is not None
    return {lease.holder: lease.total_bytes for lease in memory.leases()}


async def test_the_weights_are_leased_on_the_host_and_nothing_on_the_device(box: Box) -> None:
    replica = await box.load(toy())
    assert leases(box, "toy:0") == {"m@1": 1640}
    assert await box.effects.sleep(replica, drain_s=0) == 1000

    assert (leases(box, "toy:0"), box.leases) == ({}, {"m@1 (asleep)": 1000})
    assert box.toy.runners[0].is_asleep
    await box.effects.wake(replica)
    assert (leases(box, "toy:0"), box.leases) == ({"m@1": 1640}, {})
    assert (await first_token(replica)).finish_reason == "length"
    await box.effects.unload(replica, drain_s=0)
    assert box.toy.done.count("load") == 1


async def test_a_sleeper_makes_room_for_another_and_is_refused_while_that_one_has_it(
    box: Box,
) -> None:
    box.toy.facts = facts(device="toy:0", can_sleep=True, weights_bytes=6000)
    first = await box.load(toy("first"))
    with pytest.raises(DoesNotFit):
        await box.load(toy("second"))
    await box.effects.sleep(first, drain_s=0)
    second = await box.load(toy("second"))
    with pytest.raises(DoesNotFit, match=r"first@1 needs .* \(loaded: second@1"):
        await box.effects.wake(first)
    assert box.leases == {"first@1 (asleep)": 6000}
    await box.effects.unload(second, drain_s=0)
    await box.effects.wake(first)
    await box.effects.unload(first, drain_s=0)

    assert (leases(box, "toy:0"), box.leases) == ({}, {})


async def test_what_a_sleeper_holds_comes_back_when_it_is_unloaded(box: Box) -> None:
    replica = await box.load(toy())
    await box.effects.sleep(replica, drain_s=0)
    await box.effects.unload(replica, drain_s=0)

    assert (leases(box, "toy:0"), box.leases) == ({}, {})
    assert box.toy.runners[0].is_closed


async def test_a_failure_of_the_runner_says_why_and_the_model_goes_on(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = await box.load(toy())

    def fails() -> None:
        raise RuntimeError("no page-locked memory")

    monkeypatch.setattr(box.toy.runners[0], "sleep", fails)
    with pytest.raises(ModelUnavailable, match=r"could not be put to sleep: .*page-locked"):
        await box.effects.sleep(replica, drain_s=0)

    assert (leases(box, "toy:0"), box.leases) == ({"m@1": 1640}, {})
    assert (await first_token(replica)).finish_reason == "length"
    await box.effects.unload(replica, drain_s=0)


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("cpu:0", "it is on cpu:0, where its weights take the same memory asleep"),
        ("toy:0", "its engine does not"),
    ],
)
async def test_who_gains_nothing_by_sleeping_is_refused_by_name(
    box: Box, device: str, why: str
) -> None:
    box.toy.facts = facts(device=device)
    replica = await box.load(toy())
    with pytest.raises(Conflict, match=f"m@1 can't be put to sleep: {why}"):
        box.effects.check_sleep(replica)
    await box.effects.unload(replica, drain_s=0)


async def test_ps_shows_a_sleeper_on_the_host_without_a_kv_cache(box: Box) -> None:
    deployments = Deployments(Catalogue([toy()]), box.effects, SystemClock(), lambda _: None)
    admin = Admin(cast(Any, NO_KEYS), cast(Any, None), Plugins(), deployments)
    await deployments.load_at_start()
    state = await admin.sleep("m", drain_s=0)
    [row] = admin.loaded()

    assert (state["state"], state["bytes"]) == ("asleep", 1000)
    assert (row["state"], row["device"], row["kv_bytes"]) == ("asleep", "cpu:0", 0)
    assert (await deployments.facts(deployments.find("m"))).can_sleep
    assert (await admin.wake("m"))["bytes"] == 1640
    assert admin.loaded()[0]["device"] == "toy:0"
    await deployments.unload_all(drain_s=0)
