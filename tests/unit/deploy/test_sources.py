"""Where a model's files are."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stand_in_hub import Hub, point_to, serving

from llmhost.core.errors import ModelUnavailable
from llmhost.deploy.sources import find_files, find_local, fingerprint, presence


@pytest.mark.parametrize("source", ["builtin:nothing", "builtin:../fake", "builtin:"])
def test_a_built_in_model_that_does_not_exist_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable):
        find_local(source, tmp_path)


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert find_files(str(tmp_path), tmp_path / "models") == tmp_path


def test_a_missing_folder_is_refused_with_what_a_source_may_be(tmp_path: Path) -> None:
    with pytest.raises(
        ModelUnavailable, match=r"A source is builtin:NAME, a folder, a \.gguf file, or hf:"
    ):
        find_files(str(tmp_path / "nowhere"), tmp_path)


def test_a_folder_in_the_home_directory_may_be_written_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()

    assert find_local("~/model", tmp_path) == tmp_path / "model"


def test_a_hub_model_is_not_here_before_all_of_it_has_arrived(tmp_path: Path) -> None:
    folder = tmp_path / "org--name" / "main"
    folder.mkdir(parents=True)
    assert find_local("hf:org/name", tmp_path) is None
    (folder / ".llmhost-complete").touch()

    assert find_local("hf:org/name", tmp_path) == folder
    assert find_local("hf:org/name@v2", tmp_path) is None


def test_revisions_of_a_hub_model_do_not_share_a_folder(tmp_path: Path) -> None:
    for revision in ("main", "v2"):
        folder = tmp_path / "org--name" / revision
        folder.mkdir(parents=True)
        (folder / ".llmhost-complete").touch()

    assert find_local("hf:org/name", tmp_path) != find_local("hf:org/name@v2", tmp_path)


def test_a_fingerprint_sees_names_and_contents_and_not_the_order_or_the_place(
    tmp_path: Path,
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    for name in ("a.json", "b.json"):
        (tmp_path / "one" / name).write_text(name)
    for name in ("b.json", "a.json"):
        (tmp_path / "two" / name).write_text(name)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    (tmp_path / "two" / "a.json").rename(tmp_path / "two" / "c.json")

    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "two")


# -- a hub on loopback ----------------------------------------------------------------------------------------------

FILES = {"config.json": b"{}", "model.safetensors": b"w" * 30_000}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub()) as hub:
        point_to(monkeypatch, hub.url)
        hub.add("org/name", FILES)
        yield hub


def test_a_source_at_a_hub_is_fetched_once_and_used_again_without_a_network(
    hub: Hub, tmp_path: Path
) -> None:
    folder = find_files("hf:org/name", tmp_path)

    assert folder == (tmp_path / "org--name" / "main").resolve()
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    hub.repositories.clear()
    assert find_files("hf:org/name", tmp_path) == folder


def test_a_file_that_was_cut_short_since_is_fetched_again_and_not_served(
    hub: Hub, tmp_path: Path
) -> None:
    folder = find_files("hf:org/name", tmp_path)
    (folder / "model.safetensors").write_bytes(b"w" * 10)
    hub.asked.clear()

    assert find_local("hf:org/name", tmp_path) is None
    assert (find_files("hf:org/name", tmp_path) / "model.safetensors").stat().st_size == 30_000
    assert hub.asked == ["model.safetensors all"]


def test_it_is_known_whether_files_are_here(hub: Hub, tmp_path: Path) -> None:
    assert presence("builtin:tiny", tmp_path) == "present"
    assert presence(str(tmp_path / "nowhere"), tmp_path) == "absent"
    assert presence("hf:org/name", tmp_path) == "absent"
    hub.refuse["model.safetensors"] = [403]
    with pytest.raises(ModelUnavailable):
        find_files("hf:org/name", tmp_path)
    assert presence("hf:org/name", tmp_path) == "partial"
    find_files("hf:org/name", tmp_path)

    assert presence("hf:org/name", tmp_path) == "present"


def test_a_node_logs_that_it_fetches(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmhost.deploy.sources.LOG_EVERY_S", 0.0)
    caplog.set_level("INFO", "llmhost.deploy")
    find_files("hf:org/name", tmp_path)

    said = [record.message for record in caplog.records]
    assert (said[0], said[1], said[-1]) == ("files.fetching", "files.arriving", "files.fetched")
