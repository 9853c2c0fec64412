"""GGUF models with sliding windows of attention: what is known of a text stays usable from any place of it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp", reason="needs the extra gguf")

from tests.unit.engines.llama.windowed import VOCABULARY, save_checkpoint, write_gguf
from tests.unit.engines.runner_contract import RunnerContract
from tests.unit.engines.toy_scheduler import Asked, ToyScheduler

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.errors import ModelUnavailable
from llmhost.core.ports import RunnerFacts
from llmhost.core.step import Row
from llmhost.engines.llama.load import load_runner
from llmhost.engines.llama.runner import LlamaRunner
from llmhost.engines.llama.settings import LoadSettings
from llmhost.engines.torch.load import load_runner as load_torch

FACTS = RunnerFacts(
    device="cpu:0",
    vocab_size=0,
    max_sequence_length=1024,
    block_tokens=16,
    kv_block_bytes=16 * 6 * 2 * 32 * 4,
    weights_bytes=0,
)
SETTINGS = LoadSettings(batch_tokens=512, rows=32, threads=1, kv_type="f32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("windowed")
    write_gguf(folder / "model.gguf", save_checkpoint(folder))
    return folder


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[LlamaRunner]:
    runner = load_runner(folder / "model.gguf", SETTINGS, FACTS)
    yield runner
    runner.close()


class TestContract(RunnerContract):
    @pytest.fixture
    def runner(
        self, shared: LlamaRunner, folder: Path, request: pytest.FixtureRequest
    ) -> LlamaRunner:
        is_closed = "closing" in request.node.name
        return load_runner(folder / "model.gguf", SETTINGS, FACTS) if is_closed else shared


def asked() -> list[Asked]:
    lengths = (5, 30, 90, 200)
    return [
        Asked([(11 * at + 7 * n * n) % VOCABULARY for n in range(length)], 30)
        for at, length in enumerate(lengths)
    ]


def test_answers_are_those_of_the_torch_engine(folder: Path, shared: LlamaRunner) -> None:
    torch = load_torch(folder, block_tokens=16, options=TorchOptions(threads=1))
    wanted = ToyScheduler(torch).answer(*asked())

    assert ToyScheduler(shared).answer(*asked()) == wanted
    assert ToyScheduler(shared, chunk=7).answer(*asked()) == wanted


def test_a_text_goes_on_from_where_another_left_it_long_ago(shared: LlamaRunner) -> None:
    """The first went on far beyond the window, and others filled the cells since."""
    text = [(5 * n * n + n) % VOCABULARY for n in range(300)]
    fork = [*text[:96], *range(9, 20)]
    wanted = ToyScheduler(shared).answer(Asked(fork, 12))[0]
    shared.set_kv_blocks(0)
    scheduler = ToyScheduler(shared, blocks=120)
    first = Asked(text, 40)
    while not first.is_done:
        rows = [scheduler._row(0, first)]
        first.take(rows[0], shared.run(rows)[0])
    for at in range(4):
        scheduler.answer(Asked([(3 * n + at) % VOCABULARY for n in range(250)], 4))

    second = Asked(fork, 12, cached=96, blocks=first.blocks[:6])
    made = []
    while not second.is_done:
        row: Row = scheduler._row(7, second)
        second.take(row, shared.run([row])[0])
    made = second.made

    assert made == wanted


def test_a_model_with_windows_is_refused_what_it_can_not_have(folder: Path) -> None:
    for settings, facts, said in (
        (replace(SETTINGS, kv_layout="partitioned"), FACTS, "'partitioned'"),
        (SETTINGS, replace(FACTS, block_tokens=32), "a block must fit into the window"),
        (replace(SETTINGS, rows=128), FACTS, "at most 127 sequences"),
    ):
        with pytest.raises(ModelUnavailable, match=said):
            load_runner(folder / "model.gguf", settings, facts)
