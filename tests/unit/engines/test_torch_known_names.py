"""What transformers finds out about its own files is found out once."""

from pathlib import Path

import pytest
from transformers.utils import import_utils

from llmhost.engines.torch.known_names import Names, _Finder

NAMES: Names = {
    frozenset(): {"llama.configuration_llama": {"LlamaConfig"}},
    frozenset({"torch"}): {"llama.modeling_llama": {"LlamaModel", "LlamaForCausalLM"}},
}


class Looking:
    """`define_import_structure`, and how often it was asked for what."""

    def __init__(self) -> None:
        self.asked: list[Path] = []

    def __call__(self, path: Path | str, prefix: str | None = None) -> Names:
        self.asked.append(Path(path))
        return NAMES


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "__init__.py").touch()
    return folder


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "data" / "names.json"


def test_the_folder_of_all_models_is_looked_through_once(models: Path) -> None:
    find = _Finder(look := Looking(), models, None)

    plain, prefixed = find(str(models / "__init__.py")), find(models, prefix="models")

    assert look.asked == [models]
    assert plain == NAMES
    assert prefixed[frozenset()] == {"models.llama.configuration_llama": {"LlamaConfig"}}


def test_the_next_start_reads_what_this_one_found(models: Path, kept: Path) -> None:
    _Finder(Looking(), models, kept)(models)
    find = _Finder(look := Looking(), models, kept)

    assert find(models) == NAMES
    assert look.asked == []


def test_another_installation_is_looked_through_anew(models: Path, kept: Path) -> None:
    _Finder(Looking(), models, kept)(models)
    (models / "new.py").touch()
    (models / "__init__.py").write_text("changed")
    find = _Finder(look := Looking(), models, kept)

    find(models)

    assert look.asked == [models]


@pytest.mark.parametrize("spoilt", [b"", b"{}", b'{"mark": 1, "names": []}', b"\xff"])
def test_a_spoilt_file_is_written_anew(models: Path, kept: Path, spoilt: bytes) -> None:
    kept.parent.mkdir()
    kept.write_bytes(spoilt)

    _Finder(Looking(), models, kept)(models)

    find = _Finder(look := Looking(), models, kept)
    assert find(models) == NAMES
    assert look.asked == []


def test_a_file_that_can_not_be_written_is_no_error(models: Path, tmp_path: Path) -> None:
    (tmp_path / "data").touch()

    assert _Finder(Looking(), models, tmp_path / "data" / "names.json")(models) == NAMES


def test_other_folders_are_nobody_s_business(models: Path, kept: Path) -> None:
    find = _Finder(look := Looking(), models, kept)

    find(str(models / "llama" / "__init__.py"))

    assert look.asked == [models / "llama" / "__init__.py"]
    assert not kept.exists()


def test_what_is_kept_of_the_real_one_is_what_it_finds(kept: Path) -> None:
    real = import_utils.define_import_structure
    models = Path(str(import_utils.__file__)).parents[1] / "models"
    _Finder(real, models, kept)(models)

    assert _Finder(Looking(), models, kept)(models, "models") == real(str(models), "models")
