"""`llmhost pull`: what it names, what it fetches, and what it says."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stand_in_hub import Hub, point_to, serving

from llmhost.cli import pull

FILES = {"config.json": b"{}", "model.safetensors": b"w" * 30_000}
SETTINGS = """
[models.qwen]
source = "hf:org/name"
aliases = ["gpt"]
[models.tiny]
source = "builtin:tiny"
aliases = ["small"]
[models.tiny.adapters]
pirate = "hf:org/pirate"
[models.echo]
engine = "fake"
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "models.toml").write_text(SETTINGS)
    with serving(Hub()) as hub:
        point_to(monkeypatch, hub.url)
        hub.add("org/name", FILES)
        yield hub


@pytest.mark.parametrize("name", ["hf:org/name", "qwen", "gpt"])
def test_a_model_is_pulled_into_the_data_dir(hub: Hub, llmhost, tmp_path: Path, name: str):
    result = llmhost("pull", name)

    folder = tmp_path / "data/models/org--name/main"
    assert result.stderr == ""
    first, second = result.stdout.splitlines()
    assert first.startswith("hf:org/name is here: 2 files, 29.3 KiB (29.3 KiB fetched, checked in ")
    assert second == str(folder)
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert "(all here, checked in" in llmhost("pull", name).stdout


def test_one_file_of_a_repository_is_pulled_and_no_other(hub: Hub, llmhost, tmp_path: Path):
    hub.add("org/quant", {"README.md": b"#", "q-Q8_0.gguf": b"8" * 30_000, "q-F16.gguf": b"6"})

    result = llmhost("pull", "hf:org/quant:q8_0")

    folder = tmp_path / "data/models/org--quant/main:q8_0"
    assert result.stdout.startswith("hf:org/quant:q8_0 is here: 1 files, 29.3 KiB")
    assert [path.name for path in folder.iterdir() if path.suffix] == ["q-Q8_0.gguf"]
    assert hub.asked == ["q-Q8_0.gguf all"]


def test_a_pull_reports_itself_as_json(hub: Hub, llmhost, tmp_path: Path):
    commit = hub.repositories["org/name"].commit({**FILES, "config.json": b"[]"}, "v2")

    row = json.loads(llmhost("pull", "qwen", "--revision", "v2", "--json").stdout)

    assert row.pop("took_s") >= 0
    assert row == {
        "source": "hf:org/name@v2",
        "revision": "v2",
        "commit": commit,
        "folder": str(tmp_path / "data/models/org--name/v2"),
        "files": 2,
        "bytes": 30_002,
        "fetched_bytes": 30_002,
    }


def test_a_name_is_looked_up_in_the_running_node_first(hub: Hub, llmhost, node, tmp_path: Path):
    (tmp_path / "models.toml").unlink()
    row = {"name": "mine", "aliases": [], "engine": "torch", "source": "hf:org/name"}
    node.answers["GET /admin/v1/models"] = {"data": [row]}

    assert llmhost("pull", "mine").stdout.startswith("hf:org/name is here")


def test_an_adapter_is_pulled_by_its_models_name_and_its_own(hub: Hub, llmhost, tmp_path: Path):
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"a" * 5000}
    hub.add("org/pirate", adapter)

    for name in ("tiny:pirate", "small:pirate"):
        assert llmhost("pull", name).stdout.startswith("hf:org/pirate is here: 2 files")
    assert (tmp_path / "data/models/org--pirate/main/adapter_config.json").exists()
    assert "There is no model 'tiny:none'" in llmhost("pull", "tiny:none").stderr


def test_what_is_on_this_machine_needs_no_fetching(hub: Hub, llmhost):
    assert "builtin:tiny needs no fetching: its files are in " in llmhost("pull", "tiny").stdout
    assert json.loads(llmhost("pull", "tiny", "--json").stdout)["fetched_bytes"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["echo"], "The model 'echo' has the engine 'fake': it has no files."),
        (["none"], "There is no model 'none' in the settings; there is: qwen, tiny, echo."),
        (["org/name"], "On Hugging Face's hub it is written 'hf:org/name'."),
        (
            ["hf:name"],
            "it is written hf:ORG/NAME, hf:ORG/NAME@REVISION or, with one of its GGUF files,",
        ),
        (["qwen", "--revision", "../x"], "'hf:org/name@../x' is not the name of a repository"),
        (["hf:org/none"], "There is no 'org/none' at http://127.0.0.1:"),
    ],
)
def test_what_can_not_be_pulled_is_refused_in_one_sentence(
    hub: Hub, llmhost, words: list[str], said: str
):
    result = llmhost("pull", *words)

    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_terminal_sees_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with pull._bar("hf:org/name", is_shown=True) as report:
        report(pull_progress(10_000))
        report(pull_progress(30_000))

    assert "hf:org/name" in capsys.readouterr().err


def pull_progress(done_bytes: int):
    from llmhost.deploy.transfer import Progress

    return Progress(30_000, done_bytes)


def test_models_say_whether_their_files_are_here(hub: Hub, llmhost):
    def files() -> dict[str, str | None]:
        return {row["name"]: row["files"] for row in json.loads(llmhost("models", "--json").stdout)}

    assert files() == {"qwen": "absent", "tiny": "present", "echo": None}
    llmhost("pull", "qwen")
    assert files()["qwen"] == "present"
