"""A whole node: what is started is stopped, in an order that loses nothing."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.pipeline.node import HELD_MODEL, Held, asks, until

from llmhost.config.schema import Settings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.server import ServerSettings
from llmhost.core.errors import ConfigError, ShuttingDown
from llmhost.core.events import DeploymentChanged, RequestEnded
from llmhost.core.ports import EngineLoad
from llmhost.deploy.deployment import State
from llmhost.hooks.registry import Plugins
from llmhost.hooks.spec import hookimpl
from llmhost.host.wiring import Host
from llmhost.storage.node import DataDir
from llmhost.testing import at, make_host


class Lives:
    """A plugin that notes its life, and may fail at its start."""

    def __init__(self, *, fails: bool = False) -> None:
        self.seen: list[str] = []
        self.events: list[object] = []
        self._fails = fails

    @hookimpl
    def startup(self, host: Any) -> None:
        self.seen.append("startup")
        if self._fails:
            raise RuntimeError("no licence")

    @hookimpl
    def shutdown(self, host: Any) -> None:
        self.seen.append("shutdown")

    @hookimpl
    def observe(self, event: object) -> None:
        self.events.append(event)


async def test_a_node_that_stops_leaves_no_thread_and_no_task() -> None:
    threads, tasks = set(threading.enumerate()), asyncio.all_tasks()
    async with make_host(plugins=[Lives()]) as host:
        await host.say("hello", max_tokens=2)
    left = [
        t.name for t in set(threading.enumerate()) - threads if not t.name.startswith("asyncio")
    ]

    assert [name for name in left if name.startswith(("engine", "writer"))] == []
    assert asyncio.all_tasks() - tasks == set()


async def test_plugins_live_as_long_as_the_node_and_hear_everything_before_it_ends() -> None:
    lives = Lives()
    async with make_host(plugins=[lives]) as host:
        assert lives.seen == ["startup"]
        await host.say("hello", max_tokens=2)
    states = [event.state for event in lives.events if isinstance(event, DeploymentChanged)]
    ended = [event.outcome for event in lives.events if isinstance(event, RequestEnded)]

    assert lives.seen == ["startup", "shutdown"]
    assert states == ["loading", "ready", "draining", "absent"]
    assert ended == ["answered"]


async def test_a_plugin_that_fails_to_start_keeps_the_node_from_serving(tmp_path: Path) -> None:
    broken = Lives(fails=True)
    with pytest.raises(ConfigError, match="Plugin 'Lives' failed in startup: RuntimeError: no lic"):
        async with make_host(plugins=[broken], data_dir=tmp_path):
            pass
    async with make_host(data_dir=tmp_path):  # the data dir is free again
        pass

    assert broken.seen == ["startup", "shutdown"]


async def test_an_open_address_needs_a_key_first(tmp_path: Path) -> None:
    settings = Settings(server=ServerSettings(host="0.0.0.0"))
    with pytest.raises(ConfigError, match="llmhost keys create"):
        async with make_host(settings=settings, data_dir=tmp_path):
            pass
    async with make_host(data_dir=tmp_path) as host:
        await host.make_key()
    async with make_host(settings=settings, data_dir=tmp_path) as host:
        assert (await host.chat("hello")).status_code == 401


async def test_a_node_says_that_it_is_not_ready_while_its_models_load() -> None:
    held = Held()
    held.may_load.clear()
    async with make_host(models={"fake": ModelSpec(engine="fake")}) as host:
        assert host.host.why_not_ready() is None
    ready: list[str | None] = []

    class Watching(Lives):
        @hookimpl
        def startup(self, host: Any) -> None:
            ready.append(host.why_not_ready())

    async with make_host(plugins=[Watching()]) as host:
        ready.append(host.host.why_not_ready())

    assert ready == ["Models are loading.", None]


async def test_what_is_cut_at_the_end_of_a_drain_is_counted_and_ends() -> None:
    held = Held()
    async with make_host(plugins=[held], models={"m": HELD_MODEL}) as host:
        exchange = await host.host.processor.open(asks(max_tokens=100_000), None, {})
        held.go(1)
        await until(lambda: len(exchange._reader._stream))
        drain = asyncio.create_task(host.host.drain(0.0))
        await asyncio.sleep(0)
        held.go()
        cut = await drain

        assert cut == 1
        assert host.host.processor.in_flight == 0


async def test_a_node_that_stops_does_not_wait_for_a_load_in_flight(tmp_path: Path) -> None:
    held = Held()
    held.may_load.clear()
    settings = Settings(models={"m": HELD_MODEL})
    with DataDir(tmp_path) as data:
        async with Host(settings, data, plugins=Plugins.of(held)) as host:
            host.start_loading()
            await until(lambda: held.loads == 1)
            asking = asyncio.create_task(host.processor.open(asks(), None, {}))
            await until(lambda: host.processor.in_flight)
            cut = await host.drain(0.0)
            outcome, *_ = await asyncio.gather(asking, return_exceptions=True)
        deployment = host.deployments.find("m")

    assert host.is_reading
    assert cut == 1
    assert isinstance(outcome, ShuttingDown) and "shutting down" in outcome.message
    assert (deployment.state, deployment.reason) == (State.ABSENT, "shutdown")
    assert [memory.leased_bytes for memory in host.devices.all()] == [0]
    held.may_load.set()
    await until(lambda: not host.is_reading)


async def test_a_node_that_stops_does_not_wait_for_files_that_are_fetched(tmp_path: Path) -> None:
    held, may_read = Held(), threading.Event()

    def tokenizer(*_: object) -> Any:
        assert may_read.wait(30)

    held.tokenizer = tokenizer  # type: ignore[method-assign]
    settings = Settings(models={"m": msgspec.structs.replace(HELD_MODEL, load="request")})
    with DataDir(tmp_path) as data:
        async with Host(settings, data, plugins=Plugins.of(held)) as host:
            asking = [asyncio.create_task(host.processor.open(asks(), None, {})) for _ in range(2)]
            await until(lambda: host.is_reading)
            await host.drain(0.0)
            outcomes = await asyncio.gather(*asking, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [ShuttingDown, ShuttingDown]
    may_read.set()


async def test_a_model_that_hangs_in_a_step_fails_the_health_check_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with make_host() as host:
        assert (await host.client.get("/health")).json() == {"status": "ok"}

        monkeypatch.setattr(
            host.host.deployments, "loads", lambda: [("fake@1", EngineLoad(hung_s=130.4))]
        )
        answer = await host.client.get("/health")

        assert answer.status_code == 503
        assert "A step hangs: fake@1 for 130 s" in answer.json()["error"]["message"]


async def test_a_node_is_idle_once_nobody_has_asked_for_a_while() -> None:
    """Between two requests of somebody who asks all the time there is no moment for what takes tenths of a second."""
    clock = at("2026-01-10T03:00Z")
    async with make_host(clock=clock) as host:
        assert host.host.processor.has_been_idle(2 * 10**9)
        await host.say("hello", max_tokens=2)
        assert not host.host.processor.has_been_idle(2 * 10**9)
        clock.advance(1)
        assert not host.host.processor.has_been_idle(2 * 10**9)
        clock.advance(1)
        await until(lambda: host.host.processor.has_been_idle(2 * 10**9))
