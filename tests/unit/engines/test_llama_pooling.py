"""GGUF models that embed: the contract of all runners that pool, and what their files and operators say."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="needs the extra gguf")

from tests.unit.engines.gguf_models import write_random_llama
from tests.unit.engines.pooling_contract import TEXTS, PoolingContract, pooled, row

from llmhost.config.schema.models import ModelSpec
from llmhost.core.errors import EngineFailed, ModelUnavailable
from llmhost.core.ports import Runner
from llmhost.engines.llama.kind import LlamaKind

LAST = 3


def load(path: Path, **options: object) -> Runner:
    spec = ModelSpec(
        engine="llama",
        max_tokens_per_batch=64,
        max_sequence_length=64,
        options={"threads": 1, **options},
    )
    kind = LlamaKind()
    return kind.load(spec, path, kind.footprint(spec, path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gguf")
    write_random_llama(place / "last.gguf", pooling=LAST)
    write_random_llama(place / "plain.gguf")
    return place


class TestContract(PoolingContract):
    @pytest.fixture
    def runner(self, folder: Path) -> Iterator[Runner]:
        runner = load(folder / "last.gguf")
        yield runner
        runner.close()


def test_what_the_file_does_not_say_the_operator_may(folder: Path) -> None:
    told = load(folder / "last.gguf")
    asked = load(folder / "plain.gguf", task="embed", pooling="last")
    other = load(folder / "plain.gguf", task="embed", pooling="mean")
    rows = [row(told, text) for text in TEXTS]

    assert pooled(asked, rows) == pooled(told, rows)
    assert not np.allclose(pooled(other, rows)[2], pooled(told, rows)[2], atol=0.1)
    with pytest.raises(ModelUnavailable, match=r"options\.pooling"):
        load(folder / "plain.gguf", task="embed")
    for runner in (told, asked, other):
        runner.close()


def test_a_vector_has_length_1_unless_it_is_wanted_raw(folder: Path) -> None:
    runner = load(folder / "last.gguf")
    [plain, raw] = pooled(runner, [row(runner, TEXTS[1]), row(runner, TEXTS[1], is_raw=True)])
    assert np.linalg.norm(plain) == pytest.approx(1)
    assert np.allclose(np.array(raw) / np.linalg.norm(raw), plain, atol=1e-5)
    runner.close()


def test_a_text_beyond_the_longest_fails_alone(folder: Path) -> None:
    runner = load(folder / "last.gguf")
    long, short = runner.run([row(runner, [5] * 65), row(runner, [5] * 64)])
    assert isinstance(long, EngineFailed)
    assert not isinstance(short, EngineFailed)
    runner.close()
