"""The engine `llama` before anything is loaded: which file, how large, and what is said where the extra is missing."""

from pathlib import Path
from typing import Any

import pytest
from tests.stand_in_hub import Hub, point_to, serving
from tests.unit.engines.llama.gguf_files import write

from llmhost.config.load import load
from llmhost.config.schema.models import ModelSpec
from llmhost.core.errors import ModelUnavailable
from llmhost.deploy.sources import find_files, find_local, fingerprint, presence
from llmhost.engines.llama import extra
from llmhost.engines.llama.header import read_header
from llmhost.engines.llama.kind import LlamaKind, model_file
from llmhost.testing import make_host


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda name: None)


def spec(**keys: Any) -> ModelSpec:
    return ModelSpec(**{"engine": "llama", "source": "builtin:tiny-gguf", **keys})


def test_the_footprint_is_the_headers_and_a_load_without_weights(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    path = find_files("builtin:tiny-gguf", tmp_path)

    facts = LlamaKind().footprint(spec(options={"kv_dtype": "f32"}), path)

    assert facts.device == "cpu:0"
    assert facts.weights_bytes == read_header(path).weights_bytes
    assert facts.max_sequence_length == facts.vocab_size == 2048
    assert facts.kv_block_bytes == 16 * 4 * 2 * 128 * 4 * 9 // 8, "an eighth is to spare"
    assert LlamaKind().footprint(spec(), path).kv_block_bytes == facts.kv_block_bytes // 2
    short = LlamaKind().footprint(spec(kv_memory="1MiB"), path)
    # A mask over the KV cache is the larger part of what a step takes in so small a model.
    assert 0 < short.step_token_bytes < facts.step_token_bytes


def test_what_was_leased_is_what_is_allocated(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    path, kind = find_files("builtin:tiny-gguf", tmp_path), LlamaKind()
    predicted = kind.footprint(spec(max_batch_size=4), path)

    runner = kind.load(spec(max_batch_size=4), path, predicted)

    try:
        assert runner.facts.weights_bytes == predicted.weights_bytes
        assert runner.facts.measured_bytes == pytest.approx(predicted.weights_bytes, rel=0.01)
    finally:
        runner.close()


def test_a_folder_with_one_model_is_as_good_as_its_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    first = write(tmp_path / "sub/m-00001-of-00002.gguf")
    write(tmp_path / "sub/m-00002-of-00002.gguf")

    assert model_file(tmp_path) == first
    assert model_file(tmp_path / "sub/m-00002-of-00002.gguf") == first
    write(tmp_path / "other.gguf")
    with pytest.raises(ModelUnavailable, match=r"several GGUF files \(m-00001.*, other.gguf\)"):
        model_file(tmp_path)


def test_a_folder_without_one_is_refused_with_the_way_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="llmhost export-gguf"):
        model_file(tmp_path)


def test_one_file_of_a_repository_is_fetched_and_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "hf:org/quant@main:Q8_0"
    files = {f"Q8_0/q-Q8_0-0000{n}-of-00002.gguf": b"GGUF" + bytes(n) for n in (1, 2)}
    with serving(Hub()) as hub:
        point_to(monkeypatch, hub.url)
        hub.add("org/quant", {**files, "q-F16.gguf": b"x", "model.safetensors": b"y"})
        assert presence(source, tmp_path) == "absent"
        place = find_files(source, tmp_path)

    assert model_file(place).name == "q-Q8_0-00001-of-00002.gguf"
    assert sorted(path.name for path in place.rglob("*.*") if path.is_file()) == [
        ".llmhost-complete",
        "q-Q8_0-00001-of-00002.gguf",
        "q-Q8_0-00002-of-00002.gguf",
    ]
    assert presence(source, tmp_path) == "present"
    assert find_files(source, tmp_path) == place
    before = fingerprint(place)
    (place / "Q8_0/q-Q8_0-00002-of-00002.gguf").write_bytes(b"other")
    assert fingerprint(place) != before


def test_a_file_is_a_source_and_its_version_is_that_of_all_parts(tmp_path: Path) -> None:
    path = write(tmp_path / "m-00001-of-00002.gguf")
    other = write(tmp_path / "m-00002-of-00002.gguf")

    assert find_files(str(path), tmp_path / "models") == path
    before = fingerprint(path)
    write(tmp_path / "unrelated.gguf")
    assert fingerprint(path) == before
    write(other, {"a": 1})
    assert fingerprint(path) != before


def test_a_file_that_is_not_there_is_called_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"There is no file '.*gone.gguf'"):
        find_local(str(tmp_path / "gone.gguf"), tmp_path)
    assert presence(str(tmp_path / "gone.gguf"), tmp_path) == "absent"


def test_the_built_in_model_is_absent_until_it_is_made(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    assert presence("builtin:tiny-gguf", tmp_path) == "absent"

    path = find_files("builtin:tiny-gguf", tmp_path)

    assert path.suffix == ".gguf" and path.is_relative_to(tmp_path)
    assert presence("builtin:tiny-gguf", tmp_path) == "present"
    assert find_local("builtin:tiny-gguf", tmp_path) == path


def test_a_gguf_source_needs_no_engine_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(
        '[models.a]\nsource = "weights/m.gguf"\n[models.b]\nsource = "hf:a/b:Q8_0"\n'
        '[models.c]\nsource = "builtin:tiny-gguf"\n[models.d]\nsource = "hf:a/b"\n'
    )
    models = load(tmp_path / "models.toml", {}, {}).settings.models

    assert [model.engine for model in models.values()] == ["llama", "llama", "llama", "torch"]
    assert models["a"].source == str(tmp_path / "weights/m.gguf")


@pytest.mark.usefixtures("missing")
async def test_without_the_extra_callers_hear_how_it_is_installed_and_nothing_else_changes() -> (
    None
):
    models = {
        "quant": spec(source="hf:org/name:Q8_0", load="request"),
        "fake": ModelSpec(engine="fake"),
    }
    async with make_host(models=models) as host:
        body = {"model": "quant", "prompt": "hello", "max_tokens": 2}
        answer = await host.client.post("/v1/completions", json=body)
        other = await host.client.post("/v1/completions", json={**body, "model": "fake"})

    assert answer.status_code == 503
    error = answer.json()["error"]
    assert error["code"] == "model_unavailable"
    assert "pip install 'llmhost[gguf]'" in error["message"]
    assert "make setup EXTRAS=gguf" in error["message"]
    assert other.status_code == 200
