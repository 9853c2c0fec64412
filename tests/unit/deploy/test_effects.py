"""The acts behind a deployment: memory first, then weights; and whatever fails, the memory comes back."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.deploy.fakes import ToyKind, entry, facts

from llmhost.api.admin import Admin
from llmhost.config.schema.server import DeviceSettings
from llmhost.core.errors import DoesNotFit, EngineFailed, LlmhostError, ModelUnavailable
from llmhost.core.output import Delta
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import Purpose, SequenceSpec
from llmhost.deploy import start as start_module
from llmhost.deploy.catalogue import Catalogue, ModelEntry
from llmhost.deploy.deployment import State
from llmhost.deploy.effects import LoadEffects
from llmhost.deploy.manager import Deployments
from llmhost.deploy.replica import Replica
from llmhost.gpu.devices import Devices
from llmhost.hooks.registry import Plugins
from llmhost.observe.clock import SystemClock

CAPACITY = 10_000

NO_KEYS = SimpleNamespace(directory=None)
"""What stands for the keys of an admin who is not asked about them."""


class Box:
    """A node with one device of 10,000 bytes and two kinds of engine, `toy` and `other`."""

    def __init__(self, models_dir: Path) -> None:
        self.toy, self.other = ToyKind(), ToyKind()
        self.devices = Devices(DeviceSettings(cpu_memory=str(CAPACITY)), SystemClock())
        self.effects = LoadEffects(
            kinds={"toy": self.toy, "other": self.other},
            devices=self.devices,
            models_dir=models_dir,
            clock=SystemClock(),
            observe_steps=lambda _: lambda result: None,
        )

    @property
    def leases(self) -> dict[str, int]:
        memory = self.devices.memory("cpu:0")
        assert memory is not None
        return {lease.holder: lease.total_bytes for lease in memory.leases()}

    async def load(self, one: ModelEntry) -> Replica:
        return await self.effects.load(one, lambda _: None)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def toy(name: str = "m", **spec: Any) -> ModelEntry:
    return entry(name, engine="toy", kv_memory="640", **spec)


async def test_memory_is_leased_before_weights_are_read(box: Box) -> None:
    seen: list[dict[str, int]] = []
    box.toy.on_load = lambda: seen.append(box.leases)
    replica = await box.load(toy())
    await box.effects.unload(replica, drain_s=0)

    assert seen == [{"m@1": 1640}]
    assert box.toy.done == ["tokenizer", "footprint", "load"]


async def test_an_unload_gives_the_memory_back_and_closes_the_runner(box: Box) -> None:
    replica = await box.load(toy())
    assert box.leases == {"m@1": 1640}
    await box.effects.unload(replica, drain_s=0)

    assert box.leases == {}
    assert box.toy.runners[0].is_closed


async def test_ps_tells_what_was_loaded_from_what_was_predicted(box: Box) -> None:
    box.toy.loaded = facts(weights_bytes=900, measured_bytes=950)
    deployments = Deployments(Catalogue([toy()]), box.effects, SystemClock(), lambda _: None)
    await deployments.load_at_start()
    [row] = Admin(cast(Any, NO_KEYS), cast(Any, None), Plugins(), deployments).loaded()
    await deployments.unload_all(drain_s=0)

    assert (row["weights_bytes"], row["predicted_bytes"], row["kv_bytes"]) == (900, 1000, 640)
    assert (
        row["measured_bytes"] == 950
    )  # as the device has it; on the CPU the growth of the process


async def test_without_a_devices_own_count_the_growth_of_the_process_is_measured(
    box: Box,
) -> None:
    kept: list[bytearray] = []
    box.toy.on_load = lambda: kept.append(bytearray(b"x" * 2**26))
    replica = await box.load(toy())
    await box.effects.unload(replica, drain_s=0)

    assert 2**25 < replica.measured_bytes < 2**28


FAILURES: list[tuple[str, BaseException, str]] = [
    ("tokenizer", ModelUnavailable("no tokenizer.json"), "no tokenizer.json"),
    ("tokenizer", ValueError("odd vocabulary"), "odd vocabulary"),
    ("footprint", ModelUnavailable("unknown family"), "unknown family"),
    ("footprint", KeyError("hidden_size"), "hidden_size"),
    ("load", ModelUnavailable("file cut short"), "file cut short"),
    ("load", OSError("disk error"), "disk error"),
    ("kv", MemoryError("no room for KV"), "no room for KV"),
    ("run", RuntimeError("no kernel image"), "failed its first token"),
    ("run", EngineFailed("no kernel image"), "no kernel image"),
]


@pytest.mark.parametrize(
    ("moment", "failure", "said"),
    FAILURES,
    ids=[f"{moment}-{type(failure).__name__}" for moment, failure, _ in FAILURES],
)
async def test_whatever_fails_says_why_and_the_memory_comes_back(
    box: Box, moment: str, failure: BaseException, said: str
) -> None:
    box.toy.fails[moment] = failure

    with pytest.raises(ModelUnavailable, match=said):
        await box.load(toy())
    assert box.leases == {}
    assert all(runner.is_closed for runner in box.toy.runners)


async def test_files_that_go_while_they_are_read_leave_nothing_open(
    box: Box, tmp_path: Path
) -> None:
    first, second = (tmp_path / f"m-0000{part}-of-00002.gguf" for part in (1, 2))
    first.write_bytes(b"GGUF")
    second.write_bytes(b"GGUF")
    box.toy.on_load = second.unlink

    with pytest.raises(ModelUnavailable):
        await box.load(toy(source=str(first)))
    assert box.leases == {}
    assert [runner.is_closed for runner in box.toy.runners] == [True]


async def test_after_a_failure_the_same_model_can_be_loaded(box: Box) -> None:
    box.toy.fails["kv"] = MemoryError("no room for KV")
    with pytest.raises(ModelUnavailable):
        await box.load(toy())
    box.toy.fails.clear()
    replica = await box.load(toy())
    await box.effects.unload(replica, drain_s=0)

    assert box.toy.done.count("load") == 2


async def test_a_model_that_gives_no_first_token_in_time_is_not_put_into_service(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_module, "PROBE_TIMEOUT_S", 0.0)

    with pytest.raises(EngineFailed, match="gave no token"):
        await box.load(toy())
    assert box.leases == {}
    assert box.toy.runners[0].is_closed


async def test_a_missing_folder_is_named_and_nothing_is_leased(box: Box, tmp_path: Path) -> None:
    box.toy.needs_files = True

    with pytest.raises(ModelUnavailable, match=r"There is no folder '.*nowhere'"):
        await box.load(toy(source=str(tmp_path / "nowhere")))
    assert box.leases == {}
    assert box.toy.done == []


async def test_a_model_that_does_not_fit_is_refused_with_the_numbers(box: Box) -> None:
    box.toy.facts = facts(weights_bytes=20 * 1024)

    with pytest.raises(DoesNotFit) as refused:
        await box.load(toy())
    assert re.search(
        r"m@1 needs 20\.6 KiB on cpu:0 \(20\.0 KiB weights, 640 B KV cache, 0 B for a step\),"
        r" but 9\.8 KiB of 9\.8 KiB are free",
        refused.value.message,
    )
    assert "load" not in box.toy.done


async def test_a_model_that_does_not_fit_changes_nothing_of_the_others(box: Box) -> None:
    small = await box.load(toy("small"))
    box.other.facts = facts(weights_bytes=9_000)

    with pytest.raises(DoesNotFit, match=r"loaded: small@1 1\.6 KiB"):
        await box.load(entry("big", engine="other", kv_memory="640"))
    assert box.leases == {"small@1": 1640}
    assert (await first_token(small)).finish_reason == "length"
    await box.effects.unload(small, drain_s=0)


async def first_token(replica: Replica) -> Delta:
    ended: asyncio.Future[Delta] = asyncio.get_running_loop().create_future()
    replica.engine.submit(
        SequenceSpec(
            request_id="req_1",
            index=0,
            model=entry("small").ref,
            prompt=(1, 2),
            sampling=Sampling(temperature=0.0),
            seed=0,
            max_new_tokens=1,
            purpose=Purpose.PROBE,
        ),
        ended.set_result,
    )
    return await ended


async def test_a_device_that_only_an_engine_sees_gets_a_ledger_of_its_own(box: Box) -> None:
    box.toy.facts = facts(device="toy:0")
    replica = await box.load(toy())
    memory = box.devices.memory("toy:0")

    assert memory is not None and memory.capacity_bytes == 9_000  # nine tenths, as configured
    assert (memory.leased_bytes, box.leases) == (1640, {})
    await box.effects.unload(replica, drain_s=0)
    assert memory.leased_bytes == 0


@pytest.mark.parametrize("act", ["tokenizer", "footprint"])
async def test_a_burst_of_first_requests_reads_a_models_files_once(box: Box, act: str) -> None:
    ask: Callable[[ModelEntry], Any] = (
        box.effects.files.tokenizer if act == "tokenizer" else box.effects.files.predict
    )
    answers = await asyncio.gather(*(ask(toy()) for _ in range(100)))

    assert box.toy.done == [act]
    assert all(answer is answers[0] for answer in answers)


async def test_a_failed_reading_of_files_is_not_remembered(box: Box) -> None:
    box.toy.fails["tokenizer"] = ModelUnavailable("no tokenizer.json")
    with pytest.raises(ModelUnavailable):
        await box.effects.files.tokenizer(toy())
    box.toy.fails.clear()
    await box.effects.files.tokenizer(toy())

    assert box.toy.done == ["tokenizer", "tokenizer"]


@pytest.mark.parametrize("failure", [ModelUnavailable("broken"), KeyError("hidden_size")])
async def test_at_start_one_broken_model_takes_nothing_else_down(
    box: Box, failure: BaseException
) -> None:
    box.toy.fails["footprint"] = failure
    deployments = Deployments(
        Catalogue([toy("broken"), entry("fine", engine="other", kv_memory="640")]),
        box.effects,
        SystemClock(),
        lambda _: None,
    )
    await deployments.load_at_start()

    assert [d.state for d in deployments.all()] == [State.FAILED, State.READY]
    assert deployments.is_settled
    await deployments.unload_all(drain_s=0)
    assert box.leases == {}


async def test_a_model_that_an_operator_unloads_does_not_make_the_node_unready(box: Box) -> None:
    deployments = Deployments(Catalogue([toy()]), box.effects, SystemClock(), lambda _: None)
    assert not deployments.is_settled
    await deployments.load_at_start()
    await deployments.find("m").unload(drain_s=0, reason="operator")

    assert [d.state for d in deployments.all()] == [State.ABSENT]
    assert deployments.is_settled


async def test_models_that_load_on_request_are_left_alone_at_start(box: Box) -> None:
    deployments = Deployments(
        Catalogue([toy(load="request")]), box.effects, SystemClock(), lambda _: None
    )
    await deployments.load_at_start()

    assert deployments.is_settled
    assert [d.state for d in deployments.all()] == [State.ABSENT]
    assert box.toy.done == []


async def test_an_unknown_engine_is_named_with_those_that_exist(box: Box) -> None:
    with pytest.raises(LlmhostError, match="engine 'tpu' is unknown; there is: other, toy"):
        await box.load(entry(engine="tpu"))


async def test_the_longest_sequence_is_known_before_and_bounded_by_kv_room_after_loading(
    box: Box,
) -> None:
    one = entry(engine="toy", kv_memory="50")  # five blocks of 16 tokens
    deployments = Deployments(Catalogue([one]), box.effects, SystemClock(), lambda _: None)
    deployment = deployments.find("m")

    assert await deployments.longest_tokens(deployment) == 256
    await deployment.ensure_ready()
    assert await deployments.longest_tokens(deployment) == 80
    await deployments.unload_all(drain_s=0)


async def test_files_that_changed_while_a_model_was_not_loaded_are_read_anew(box: Box) -> None:
    replica = await box.load(toy())
    await box.effects.unload(replica, drain_s=0)
    box.toy.facts = facts(weights_bytes=5000, vocab_size=128)
    again = await box.load(toy())

    assert box.leases == {"m@1": 5640}
    assert again.tokenizer.vocab_size == again.facts.vocab_size == 128
    await box.effects.unload(again, drain_s=0)


async def test_files_that_were_repaired_after_a_failed_load_are_read_anew(box: Box) -> None:
    box.toy.fails["load"] = ModelUnavailable("file cut short")
    with pytest.raises(ModelUnavailable):
        await box.load(toy())
    box.toy.fails.clear()
    box.toy.facts = facts(weights_bytes=5000)
    replica = await box.load(toy())

    assert box.leases == {"m@1": 5640}
    await box.effects.unload(replica, drain_s=0)


async def test_host_memory_for_evicted_blocks_is_leased_beside(box: Box) -> None:
    replica = await box.load(toy(kv_host_memory="100"))
    assert box.leases == {"m@1": 1640, "m@1 (KV on the host)": 100}
    assert replica.plan.host_kv_blocks == box.toy.runners[0].host_blocks == 10
    await box.effects.unload(replica, drain_s=0)

    assert box.leases == {}
