"""`llmhost export-gguf`: what it writes, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest

from llmhost.deploy.sources import BUILT_IN_MODELS
from llmhost.engines.llama.header import read_header

pytest.importorskip("gguf")
TINY = BUILT_IN_MODELS / "tiny"


def test_a_folder_is_written_to_a_file(llmhost, tmp_path: Path):
    shutil.copytree(TINY, tmp_path / "mine")

    result = llmhost("export-gguf", "mine", "out/mine.gguf", "--type", "BF16")

    assert result.stderr == ""
    assert result.stdout == "out/mine.gguf is written: llama, bf16, 7.1 MiB\n"
    assert read_header(tmp_path / "out/mine.gguf").metadata["general.name"] == "mine"


@pytest.mark.parametrize("model", ["builtin:tiny", "tiny", "small"])
def test_a_source_or_a_model_of_the_settings_is_written(llmhost, tmp_path: Path, model: str):
    (tmp_path / "models.toml").write_text(
        '[models.tiny]\nsource = "builtin:tiny"\naliases = ["small"]\n'
    )

    row = json.loads(llmhost("export-gguf", model, "m.gguf", "--json").stdout)

    assert row.pop("took_s") >= 0
    size = (tmp_path / "m.gguf").stat().st_size
    assert row == {
        "file": "m.gguf",
        "architecture": "llama",
        "type": "f16",
        "tensors": 38,
        "bytes": size,
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["builtin:tiny", "m.gguf", "--type", "q9"], "There is no type 'q9'; there is: f32, f16,"),
        (["builtin:tiny", "there.gguf"], "there.gguf is there already. --force writes over it."),
        (["builtin:tiny", "folder"], "folder is a folder. Name the file to write, such as folder/"),
        (["there.gguf", "m.gguf"], "A checkpoint is a folder with safetensors."),
        (["folder", "m.gguf"], "folder has no config.json"),
        (["none", "m.gguf"], "There is no model 'none' in the settings"),
        (["hf:org/name", "m.gguf"], "`llmhost pull hf:org/name` fetches it."),
    ],
)
def test_what_can_not_be_written_is_refused_in_one_sentence(
    llmhost, tmp_path: Path, words: list[str], said: str
):
    (tmp_path / "there.gguf").write_bytes(b"")
    (tmp_path / "folder").mkdir()

    result = llmhost("export-gguf", *words)

    assert result.exit_code == 1

    assert said in result.stderr
    assert not (tmp_path / "m.gguf").exists()


def test_force_writes_over_what_is_there(llmhost, tmp_path: Path):
    (tmp_path / "there.gguf").write_bytes(b"")

    llmhost("export-gguf", "builtin:tiny", "there.gguf", "--force")

    assert read_header(tmp_path / "there.gguf").tensors
