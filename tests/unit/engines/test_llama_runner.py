"""The llama runner: the contract of all runners, over llama.cpp's own kernels and a random model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp", reason="needs the extra gguf")

from tests.unit.engines.gguf_models import write_random_llama
from tests.unit.engines.runner_contract import RunnerContract

from llmhost.core.errors import ModelUnavailable
from llmhost.core.ports import RunnerFacts
from llmhost.engines.llama.load import LoadSettings, load_runner
from llmhost.engines.llama.runner import LlamaRunner

FACTS = RunnerFacts(
    device="cpu:0",
    vocab_size=0,
    max_sequence_length=4096,
    block_tokens=16,
    kv_block_bytes=16 * 2 * 2 * 32 * 4,
    weights_bytes=0,
)
SETTINGS = LoadSettings(batch_tokens=512, rows=32, threads=1, kv_type="f32")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llama(tmp_path_factory.mktemp("gguf") / "random.gguf")


@pytest.fixture(scope="module")
def shared(path: Path) -> Iterator[LlamaRunner]:
    """One for all tests: a model that was used before gives what a fresh one gives."""
    runner = load_runner(path, SETTINGS, FACTS)
    yield runner
    runner.close()


class TestContract(RunnerContract):
    @pytest.fixture
    def runner(
        self, shared: LlamaRunner, path: Path, request: pytest.FixtureRequest
    ) -> LlamaRunner:
        is_closed = "closing" in request.node.name
        return load_runner(path, SETTINGS, FACTS) if is_closed else shared


def test_a_file_that_is_no_model_is_refused_in_a_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelUnavailable, match="could not load"):
        load_runner(broken, SETTINGS, FACTS)
