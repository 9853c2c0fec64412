"""The llama runner: the contract of all runners, over llama.cpp's own kernels and a random model."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="needs the extra gguf")

from tests.unit.engines.gguf_models import write_random_llama
from tests.unit.engines.runner_contract import RunnerContract
from tests.unit.engines.toy_scheduler import Asked, ToyScheduler

from llmhost.core.errors import EngineFailed, ModelUnavailable, OutOfMemory
from llmhost.core.ports import RunnerFacts
from llmhost.engines.llama import runner as runner_module
from llmhost.engines.llama.adapter_files import Pair
from llmhost.engines.llama.adapters import Written
from llmhost.engines.llama.context import Context, ContextShape, Room
from llmhost.engines.llama.load import load_runner
from llmhost.engines.llama.runner import LlamaRunner
from llmhost.engines.llama.settings import LoadSettings

FACTS = RunnerFacts(
    device="cpu:0",
    vocab_size=0,
    max_sequence_length=4096,
    block_tokens=16,
    kv_block_bytes=16 * 2 * 2 * 32 * 4,
    weights_bytes=0,
)
SETTINGS = LoadSettings(batch_tokens=512, rows=32, threads=1, kv_type="f32", kv_layout="unified")
APART = replace(SETTINGS, kv_layout="partitioned")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llama(tmp_path_factory.mktemp("gguf") / "random.gguf")


@pytest.fixture(scope="module")
def shared(path: Path) -> Iterator[LlamaRunner]:
    """One for all tests: a model that was used before gives what a fresh one gives."""
    runner = load_runner(path, SETTINGS, FACTS)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def apart(path: Path) -> Iterator[LlamaRunner]:
    """The same with a buffer for each sequence."""
    runner = load_runner(path, APART, FACTS)
    yield runner
    runner.close()


class TestContract(RunnerContract):
    @pytest.fixture
    def runner(
        self, shared: LlamaRunner, path: Path, request: pytest.FixtureRequest
    ) -> LlamaRunner:
        is_closed = "closing" in request.node.name
        return load_runner(path, SETTINGS, FACTS) if is_closed else shared


class TestContractWithABufferEach(RunnerContract):
    @pytest.fixture
    def runner(self, apart: LlamaRunner, path: Path, request: pytest.FixtureRequest) -> LlamaRunner:
        is_closed = "closing" in request.node.name
        return load_runner(path, APART, FACTS) if is_closed else apart


def test_a_file_that_is_no_model_is_refused_in_a_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelUnavailable, match="could not load"):
        load_runner(broken, SETTINGS, FACTS)


def long_ones(new_tokens: int = 40) -> list[Asked]:
    return [Asked([(7 * at + n) % 150 for n in range(90)], new_tokens) for at in range(8)]


def test_what_finds_no_room_waits_in_host_memory_or_has_more_made(
    path: Path, shared: LlamaRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = ToyScheduler(shared, blocks=200).answer(*long_ones())
    monkeypatch.setattr(runner_module, "LEAST_CELLS", 256)
    runner = load_runner(path, SETTINGS, FACTS)
    few, many = ToyScheduler(runner, blocks=200), long_ones()

    first = [few.answer(one)[0] for one in long_ones()]
    assert runner.context_cells <= 512, "one at a time needs no more"
    together = few.answer(*many)

    assert first == together == usual
    assert runner.context_cells > 8 * 130
    monkeypatch.setattr(runner_module, "SHRINK_EVERY", 2)
    assert few.answer(long_ones()[3]) == [usual[3]]
    assert runner.context_cells < 1024, "a lull makes it smaller again"
    runner.close()


def test_a_lease_that_shrinks_amid_an_answer_keeps_what_it_still_covers(path: Path) -> None:
    runner = load_runner(path, SETTINGS, FACTS)
    scheduler, [one] = ToyScheduler(runner, blocks=200), long_ones()[:1]
    scheduler.free.sort(reverse=True)
    for _ in range(5):
        scheduler.step([one])

    runner.set_kv_blocks(20)

    assert scheduler.answer(one) == ToyScheduler(runner).answer(long_ones()[0])
    runner.close()


def test_an_interrupted_step_ends_in_a_failure_and_not_in_an_answer(path: Path) -> None:
    runner = load_runner(path, SETTINGS, FACTS)
    scheduler = ToyScheduler(runner)
    runner.interrupt()
    with pytest.raises(EngineFailed, match="being unloaded"):
        scheduler.answer(*long_ones())
    runner.close()


def test_a_context_that_can_not_grow_goes_on_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Narrow(Context):
        def __init__(self, library: Any, model: Any, shape: ContextShape, room: Room) -> None:
            if room.cells > 512:
                raise OutOfMemory("The machine has no more.")
            super().__init__(library, model, shape, room)

    monkeypatch.setattr(runner_module, "LEAST_CELLS", 256)
    monkeypatch.setattr(runner_module, "Context", Narrow)
    runner = load_runner(path, SETTINGS, FACTS)
    scheduler = ToyScheduler(runner, blocks=200)
    usual = scheduler.answer(long_ones()[0])

    with pytest.raises(OutOfMemory):
        scheduler.answer(*long_ones())

    assert scheduler.answer(long_ones()[0]) == usual
    runner.close()


def test_a_step_larger_than_the_context_has_room_for_at_once_is_cut(
    path: Path, shared: LlamaRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp would end the process over it."""
    usual = ToyScheduler(shared, blocks=200).answer(*long_ones())
    monkeypatch.setattr(runner_module, "LEAST_CELLS", 256)
    runner = load_runner(path, SETTINGS, FACTS)

    assert ToyScheduler(runner, blocks=200).answer(*long_ones()) == usual
    runner.close()


def test_many_get_buffers_of_their_own_and_what_they_share_brings_them_together(
    path: Path, shared: LlamaRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "SHRINK_EVERY", 20)
    usual, few = ToyScheduler(shared, blocks=300).answer(*long_ones()), long_ones()[:1]
    runner = load_runner(path, replace(SETTINGS, kv_layout="auto"), FACTS)
    scheduler, many = ToyScheduler(runner, blocks=300), long_ones()

    assert scheduler.answer(*few) == usual[:1]
    assert runner.buffers == 0
    for _ in range(9):
        scheduler.step(many)
    assert runner.buffers == 8
    assert scheduler.answer(*many) == usual
    assert scheduler.answer(long_ones()[3]) == [usual[3]]
    assert runner.buffers == 0, "a lull brings them together"
    runner.close()


def test_a_text_that_outgrows_its_buffer_goes_on_in_a_larger_one_or_a_common_one(
    path: Path, shared: LlamaRunner
) -> None:
    def lengthy() -> list[Asked]:
        return [Asked([(3 * at + n) % 150 for n in range(240)], 24) for at in range(6)]

    usual = ToyScheduler(shared, blocks=300).answer(*lengthy())
    for blocks in (300, 600):
        runner = load_runner(path, replace(SETTINGS, kv_layout="auto"), FACTS)
        assert ToyScheduler(runner, blocks=blocks).answer(*lengthy()) == usual
        runner.close()


@pytest.mark.parametrize(("settings", "chunk"), [(SETTINGS, 1000), (SETTINGS, 16), (APART, 1000)])
def test_numbers_that_are_none_fail_their_row_alone(
    path: Path, settings: LoadSettings, chunk: int
) -> None:
    runner = load_runner(path, settings, FACTS)
    a, b = np.full((2, 64), 1e20, np.float32), np.full((32, 2), 1e18, np.float32)
    runner.adapters.add("huge", Written([Pair("blk.0.attn_v.weight", a, b)], "llama"))
    wanted = ToyScheduler(runner).answer(*long_ones(8)[:3])
    crowd = long_ones(8)[:3]
    for at, one in enumerate(crowd):
        one.joins_at = at
    spoiler = Asked([3 * n % 150 for n in range(40)], 8, adapter="huge")

    scheduler = ToyScheduler(runner, chunk=chunk)
    scheduler.answer(spoiler, *crowd)
    later = scheduler.answer(*long_ones(8)[:3])

    assert spoiler.failure is not None
    assert [one.made for one in crowd] == later == wanted
    runner.close()
