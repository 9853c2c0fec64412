"""One model's life: whoever asks at whatever moment gets a loaded model or the reason why not."""

import asyncio
from typing import Any

import pytest
from tests.unit.deploy.fakes import Stage, settle

from llmhost.core.errors import ConfigError, DoesNotFit, EngineFailed, ModelUnavailable
from llmhost.deploy.deployment import RETRY_AFTER_S, State


async def test_a_hundred_callers_share_one_load() -> None:
    stage = Stage()
    stage.effects.gate.clear()
    callers = [asyncio.create_task(stage.deployment.ensure_ready()) for _ in range(100)]
    await settle()
    stage.effects.gate.set()
    await asyncio.gather(*callers)

    assert stage.effects.done == ["load"]
    assert stage.states == ["loading", "ready"]


async def test_a_ready_model_is_not_loaded_again() -> None:
    stage = Stage()
    await stage.deployment.ensure_ready()
    await stage.deployment.ensure_ready("operator")

    assert stage.effects.done == ["load"]


async def test_a_caller_who_leaves_does_not_stop_the_load_for_the_rest() -> None:
    stage = Stage()
    stage.effects.gate.clear()
    first = asyncio.create_task(stage.deployment.ensure_ready())
    second = asyncio.create_task(stage.deployment.ensure_ready())
    await settle()
    first.cancel()
    await settle()
    stage.effects.gate.set()
    await second

    assert first.cancelled()
    assert stage.effects.done == ["load"]


async def test_a_load_that_fails_after_everybody_left_is_no_unseen_exception() -> None:
    stage, unseen = Stage(), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, facts: unseen.append(facts))
    stage.effects.gate.clear()
    stage.effects.fails = [ModelUnavailable("broken file")]
    only = asyncio.create_task(stage.deployment.ensure_ready())
    await settle()
    only.cancel()
    await settle()
    stage.effects.gate.set()
    await settle()

    assert stage.deployment.reason == "broken file"
    assert unseen == []


async def test_a_request_during_a_drain_gets_a_fresh_load() -> None:
    stage = Stage()
    await stage.deployment.ensure_ready()
    stage.effects.unload_gate.clear()
    unload = asyncio.create_task(stage.deployment.unload(drain_s=30, reason="operator"))
    await settle()
    assert stage.deployment.state is State.DRAINING
    request = asyncio.create_task(stage.deployment.ensure_ready())
    await settle()
    assert not request.done()
    stage.effects.unload_gate.set()
    await asyncio.gather(unload, request)

    assert stage.effects.done == ["load", "unload 30", "unloaded", "load"]
    assert stage.states == ["loading", "ready", "draining", "absent", "loading", "ready"]
    assert stage.deployment.least_busy() is stage.deployment.replicas[0]


async def test_nothing_is_routed_to_a_model_that_drains() -> None:
    stage = Stage()
    await stage.deployment.ensure_ready()
    stage.effects.unload_gate.clear()
    unload = asyncio.create_task(stage.deployment.unload(drain_s=30, reason="operator"))
    await settle()

    with pytest.raises(ModelUnavailable, match="m@1 is draining: operator") as refused:
        stage.deployment.least_busy()
    assert refused.value.retry_after_s == 1
    stage.effects.unload_gate.set()
    await unload


async def test_an_unload_while_loading_waits_for_the_load_and_undoes_it() -> None:
    stage = Stage()
    stage.effects.gate.clear()
    request = asyncio.create_task(stage.deployment.ensure_ready())
    await settle()
    unload = asyncio.create_task(stage.deployment.unload(drain_s=0, reason="operator"))
    await settle()
    stage.effects.gate.set()
    await asyncio.gather(request, unload)

    assert stage.states == ["loading", "ready", "draining", "absent"]
    assert stage.effects.held == 0


async def test_an_unload_while_a_load_fails_leaves_the_failure_to_be_seen() -> None:
    stage = Stage()
    stage.effects.gate.clear()
    stage.effects.fails = [ModelUnavailable("broken file")]
    request = asyncio.create_task(stage.deployment.ensure_ready())
    await settle()
    unload = asyncio.create_task(stage.deployment.unload(drain_s=0, reason="operator"))
    stage.effects.gate.set()
    outcome, _ = await asyncio.gather(request, unload, return_exceptions=True)

    assert isinstance(outcome, ModelUnavailable)
    assert stage.states == ["loading", "failed"]
    assert stage.deployment.reason == "broken file"


@pytest.mark.parametrize("together", [True, False])
async def test_unloading_twice_unloads_once(together: bool) -> None:
    stage = Stage()
    await stage.deployment.ensure_ready()
    if together:
        await asyncio.gather(
            stage.deployment.unload(drain_s=1, reason="operator"),
            stage.deployment.unload(drain_s=1, reason="shutdown"),
        )
    else:
        await stage.deployment.unload(drain_s=1, reason="operator")
        await stage.deployment.unload(drain_s=1, reason="shutdown")

    assert stage.effects.done == ["load", "unload 1", "unloaded"]
    assert stage.states == ["loading", "ready", "draining", "absent"]


async def test_unloading_what_was_never_loaded_does_nothing() -> None:
    stage = Stage()
    await stage.deployment.unload(drain_s=1, reason="operator")

    assert stage.events == []


async def test_an_unload_whose_asker_leaves_is_carried_to_its_end() -> None:
    stage = Stage()
    await stage.deployment.ensure_ready()
    stage.effects.unload_gate.clear()
    unload = asyncio.create_task(stage.deployment.unload(drain_s=30, reason="operator"))
    await settle()
    unload.cancel()
    await settle()
    stage.effects.unload_gate.set()
    await settle()
    assert stage.deployment.state is State.ABSENT
    await stage.deployment.ensure_ready()

    assert stage.effects.held == 1


async def test_a_failed_load_tells_everybody_who_waits_why() -> None:
    stage = Stage()
    stage.effects.fails = [DoesNotFit("needs 9 GiB, 4 GiB are free")]
    outcomes = await asyncio.gather(
        *(stage.deployment.ensure_ready() for _ in range(3)), return_exceptions=True
    )

    assert [str(outcome) for outcome in outcomes] == ["needs 9 GiB, 4 GiB are free"] * 3
    assert stage.effects.done == ["load"]
    assert (stage.events[-1].state, stage.events[-1].reason) == ("failed", str(outcomes[0]))


async def test_requests_wait_five_seconds_after_a_failed_load_before_one_tries_again() -> None:
    stage = Stage()
    stage.effects.fails = [ModelUnavailable("broken file")]
    with pytest.raises(ModelUnavailable):
        await stage.deployment.ensure_ready()
    stage.clock.advance(RETRY_AFTER_S - 1)
    with pytest.raises(ModelUnavailable, match="broken file") as refused:
        await stage.deployment.ensure_ready()
    assert refused.value.retry_after_s == pytest.approx(1)
    assert stage.effects.done == ["load"]
    stage.clock.advance(1)
    await stage.deployment.ensure_ready()

    assert stage.effects.done == ["load", "load"]
    assert stage.deployment.state is State.READY


@pytest.mark.parametrize(
    ("failure", "kind", "retry_after_s"),
    [
        (ModelUnavailable("broken file"), ModelUnavailable, 4),
        (EngineFailed("no token"), EngineFailed, 4),
        (DoesNotFit("needs 9 GiB"), DoesNotFit, None),
        (ConfigError("engine is unknown"), ConfigError, None),
        (RuntimeError("a bug"), ModelUnavailable, 4),
    ],
)
async def test_a_failed_load_is_the_same_error_for_those_who_come_later(
    failure: Exception, kind: type[Exception], retry_after_s: float | None
) -> None:
    stage = Stage()
    stage.effects.fails = [failure]
    with pytest.raises(type(failure)):
        await stage.deployment.ensure_ready()
    stage.clock.advance(1)
    heard = []
    for _ in range(2):
        with pytest.raises(kind) as refused:
            await stage.deployment.ensure_ready()
        heard.append(refused.value)

    assert [type(error) for error in heard] == [kind, kind]
    assert [str(error) for error in heard] == [stage.deployment.reason] * 2
    assert [error.retry_after_s for error in heard] == [retry_after_s] * 2  # type: ignore[attr-defined]
    assert heard[0] is not heard[1] and failure not in heard  # each has a traceback of its own
    assert stage.effects.done == ["load"]


async def test_an_operator_does_not_wait_after_a_failed_load() -> None:
    stage = Stage()
    stage.effects.fails = [ModelUnavailable("broken file")]
    with pytest.raises(ModelUnavailable):
        await stage.deployment.ensure_ready()
    await stage.deployment.ensure_ready("operator")

    assert stage.deployment.state is State.READY


async def test_a_broken_engine_gives_its_memory_back_and_the_next_request_loads_afresh() -> None:
    stage = Stage()
    await stage.deployment.ensure_ready()
    stage.effects.breaks[0](EngineFailed("device lost"))
    assert (stage.deployment.state, stage.deployment.reason) == (State.FAILED, "device lost")
    await settle()
    assert stage.effects.held == 0
    await stage.deployment.ensure_ready()

    assert stage.effects.done == ["load", "unload 0", "unloaded", "load"]


async def test_a_load_after_a_break_waits_until_the_memory_has_come_back() -> None:
    stage = Stage()
    await stage.deployment.ensure_ready()
    stage.effects.unload_gate.clear()
    stage.effects.breaks[0](EngineFailed("device lost"))
    request = asyncio.create_task(stage.deployment.ensure_ready("operator"))
    await settle()
    assert not request.done()
    stage.effects.unload_gate.set()
    await request

    assert stage.effects.done == ["load", "unload 0", "unloaded", "load"]


async def test_a_shutdown_right_after_a_break_waits_until_the_memory_has_come_back() -> None:
    stage = Stage()
    await stage.deployment.ensure_ready()
    stage.effects.unload_gate.clear()
    stage.effects.breaks[0](EngineFailed("device lost"))
    unload = asyncio.create_task(stage.deployment.unload(drain_s=0, reason="shutdown"))
    await settle()
    assert not unload.done()
    stage.effects.unload_gate.set()
    await unload

    assert stage.effects.held == 0


async def test_a_break_is_not_held_against_a_model_as_a_failed_load_is() -> None:
    stage = Stage()
    stage.effects.fails = [ModelUnavailable("broken file")]
    with pytest.raises(ModelUnavailable):
        await stage.deployment.ensure_ready()
    await stage.deployment.ensure_ready("operator")
    stage.effects.breaks[0](EngineFailed("device lost"))
    await stage.deployment.ensure_ready()

    assert stage.deployment.state is State.READY


async def test_an_engine_that_breaks_while_it_drains_is_unloaded_once() -> None:
    stage = Stage()
    await stage.deployment.ensure_ready()
    stage.effects.unload_gate.clear()
    unload = asyncio.create_task(stage.deployment.unload(drain_s=30, reason="operator"))
    await settle()
    stage.effects.breaks[0](EngineFailed("device lost"))
    stage.effects.unload_gate.set()
    await unload
    await settle()

    assert stage.effects.done == ["load", "unload 30", "unloaded"]
    assert stage.states[-1] == "absent"


async def test_events_say_how_long_a_change_took_and_what_it_holds() -> None:
    stage = Stage()
    stage.effects.gate.clear()
    request = asyncio.create_task(stage.deployment.ensure_ready())
    await settle()
    stage.clock.advance(2.5)
    stage.effects.gate.set()
    await request
    ready = stage.events[-1]

    assert (ready.model, ready.state, ready.took_s, ready.bytes) == ("m@1", "ready", 2.5, 120)
    assert ready.reason == "request"
