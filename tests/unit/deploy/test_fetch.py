"""Fetching from a hub on loopback: what arrives, what is taken up again, and what is said when it can't be."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stand_in_hub import Hub, point_to, serving, settings

from llmhost.config.sources import parse_hub_source
from llmhost.core.errors import ModelUnavailable
from llmhost.deploy import transfer
from llmhost.deploy.fetch import Fetched, Place, fetch
from llmhost.deploy.hub import choose_files
from llmhost.deploy.transfer import Progress

WEIGHTS = bytes(range(256)) * 1200
FILES = {
    "config.json": b'{"a": 1}',
    "tokenizer.json": b"t" * 5000,
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"\x80pickle",
    "modeling.py": b"print('no')",
}
USED = {"config.json", "tokenizer.json", "model.safetensors"}
SOURCE = parse_hub_source("hf:org/name")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(transfer, "PAUSES_S", (0.0, 0.0))
    with serving(Hub()) as hub:
        point_to(monkeypatch, hub.url)
        hub.add("org/name", FILES)
        yield hub


def bring(models_dir: Path, source: str = "org/name", *, check: bool = True) -> Fetched:
    return fetch(parse_hub_source(source), models_dir, lambda progress: None, check=check)


def names(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)) for path in found} - {".llmhost-complete"}


def asked_for_weights(hub: Hub) -> list[str]:
    """The others arrive beside them, and may or may not have when they break off."""
    return [asked for asked in hub.asked if asked.startswith("model.safetensors")]


def refusal(models_dir: Path, source: str = "org/name") -> str:
    with pytest.raises(ModelUnavailable) as caught:
        bring(models_dir, source)
    return caught.value.message


# ---------------------------------------------------------------- what is fetched


def test_a_fetch_brings_weights_and_settings_and_no_pickles_or_programs(
    hub: Hub, tmp_path: Path
) -> None:
    fetched = bring(tmp_path)

    assert names(fetched.folder) == USED
    assert all((fetched.folder / name).read_bytes() == FILES[name] for name in USED)
    assert fetched.files == 3
    assert fetched.arrived_bytes == fetched.total_bytes == sum(len(FILES[name]) for name in USED)
    assert fetched.commit == hub.repositories["org/name"].revisions["main"]
    assert not [asked for asked in hub.asked if "bin" in asked or ".py" in asked]


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (["model.safetensors", "consolidated.safetensors", "model.fp16.safetensors"], 0),
        (["model.safetensors.index.json", "model-00001-of-00001.safetensors", "x.safetensors"], 2),
        (["weights.safetensors", "onnx/model.onnx", "original/model.safetensors"], 0),
        (["adapter_model.safetensors", "adapter_config.json", "training_args.bin"], 2),
        (["model.safetensors", "1_Pooling/config.json", "onnx/config.json"], 2),
        (["model.safetensors", "additional_chat_templates/tool_use.jinja"], 2),
        (["model.safetensors", ".hidden/config.json", "../config.json", "/config.json"], 0),
    ],
)
def test_one_copy_of_the_weights_and_what_stands_beside_it(there: list[str], wanted: int) -> None:
    """The first so many of `there` are wanted; just the first for 0."""
    assert choose_files(there, SOURCE) == sorted(there[: wanted or 1])


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (["model.gguf"], "GGUF files only"),
        (["pytorch_model.bin", "config.json"], "pickles"),
        (["data.csv"], "Is it a model?"),
    ],
)
def test_a_repository_without_weights_that_can_be_read_says_what_it_has(
    there: list[str], said: str
) -> None:
    with pytest.raises(ModelUnavailable, match=said):
        choose_files(there, SOURCE)


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub, tmp_path: Path) -> None:
    repository = hub.repositories["org/name"]
    first = repository.revisions["main"]
    repository.commit({**FILES, "config.json": b"{}"}, "refs/pr/1")

    changed, pinned = bring(tmp_path, "org/name@refs/pr/1"), bring(tmp_path, f"org/name@{first}")

    assert (changed.folder / "config.json").read_bytes() == b"{}"
    assert (pinned.folder / "config.json").read_bytes() == FILES["config.json"]


def test_a_mirror_that_lists_names_only_is_asked_for_each_hash(hub: Hub, tmp_path: Path) -> None:
    hub.lists_names_only = True
    hub.corrupt["model.safetensors"] = 1

    assert (bring(tmp_path).folder / "model.safetensors").read_bytes() == WEIGHTS


def test_progress_ends_with_everything(hub: Hub, tmp_path: Path) -> None:
    seen: list[Progress] = []
    fetched = fetch(SOURCE, tmp_path, seen.append)

    assert seen[-1] == Progress(fetched.total_bytes, fetched.total_bytes)
    assert all(progress.done_bytes <= progress.total_bytes for progress in seen)


# ---------------------------------------------------------------- what is here already


def test_nothing_is_fetched_twice(hub: Hub, tmp_path: Path) -> None:
    bring(tmp_path)
    hub.asked.clear()

    assert bring(tmp_path).arrived_bytes == 0
    assert hub.asked == []
    assert not Place.of(SOURCE, tmp_path).is_begun


def test_a_file_with_other_contents_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    folder = bring(tmp_path).folder
    (folder / "model.safetensors").write_bytes(bytes(len(WEIGHTS)))
    hub.asked.clear()

    assert bring(tmp_path).arrived_bytes == len(WEIGHTS)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.asked == ["model.safetensors all"]


def test_of_a_branch_that_has_moved_only_what_has_changed_is_fetched(
    hub: Hub, tmp_path: Path
) -> None:
    bring(tmp_path)
    hub.asked.clear()
    moved = {"config.json": b'{"a": 2}', "model.safetensors": WEIGHTS}
    hub.repositories["org/name"].commit(moved)
    fetched = bring(tmp_path)

    assert hub.asked == ["config.json all"]
    assert names(fetched.folder) == set(moved)
    assert (fetched.folder / "config.json").read_bytes() == b'{"a": 2}'


def test_a_folder_of_an_earlier_version_is_taken_over(hub: Hub, tmp_path: Path) -> None:
    folder = bring(tmp_path).folder
    (folder / ".llmhost-complete").write_bytes(b"")
    hub.asked.clear()
    assert Place.of(SOURCE, tmp_path).version is not None

    assert bring(tmp_path).arrived_bytes == 0
    assert hub.asked == []
    assert (folder / ".llmhost-complete").stat().st_size


def test_who_loads_while_a_newer_version_comes_never_gets_some_of_each(
    hub: Hub, tmp_path: Path
) -> None:
    bring(tmp_path)
    loading = Place.of(SOURCE, tmp_path).version
    assert loading is not None
    already_open = (loading / "model.safetensors").open("rb")
    hub.repositories["org/name"].commit({**FILES, "model.safetensors": bytes(len(WEIGHTS))})
    fetched = bring(tmp_path)

    with already_open:
        assert already_open.read() == WEIGHTS
    assert not (loading / "config.json").exists()
    assert (fetched.folder / "model.safetensors").read_bytes() == bytes(len(WEIGHTS))
    assert len(list(Place.of(SOURCE, tmp_path).versions.iterdir())) == 1


def test_a_real_folder_of_an_earlier_llmhost_becomes_a_version(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "org--name" / "main"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / ".llmhost-complete").touch()
    bring(tmp_path)

    assert "model.safetensors all" not in hub.asked
    assert folder.is_symlink()
    assert names(folder) == USED


def test_a_version_that_was_complete_when_its_process_was_killed_is_taken_up(
    hub: Hub, tmp_path: Path
) -> None:
    place = Place.of(SOURCE, tmp_path)
    bring(tmp_path)
    place.folder.unlink()
    hub.asked.clear()
    assert place.version is None

    assert bring(tmp_path).arrived_bytes == 0
    assert hub.asked == []
    assert place.version is not None


# ---------------------------------------------------------------- what breaks and goes on


def test_a_transfer_that_breaks_off_goes_on_from_there(hub: Hub, tmp_path: Path) -> None:
    hub.cut["model.safetensors"] = [100_000, 50_000]
    folder = bring(tmp_path).folder

    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert asked_for_weights(hub) == [
        "model.safetensors all",
        "model.safetensors bytes=100000-",
        "model.safetensors bytes=150000-",
    ]


def test_a_host_that_ignores_ranges_sends_all_of_it_again(hub: Hub, tmp_path: Path) -> None:
    hub.ignores_ranges = True
    hub.cut["model.safetensors"] = [100_000]

    assert (bring(tmp_path).folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_hub_that_is_busy_is_asked_again(hub: Hub, tmp_path: Path) -> None:
    hub.refuse["model.safetensors"] = [503, 429]

    assert (bring(tmp_path).folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_hub_that_keeps_breaking_off_is_given_up_and_what_arrived_is_kept(
    hub: Hub, tmp_path: Path
) -> None:
    hub.cut["model.safetensors"] = [100_000, 0, 0, 0]

    assert "broke off 3 times" in refusal(tmp_path)
    hub.asked.clear()
    assert (bring(tmp_path).folder / "model.safetensors").read_bytes() == WEIGHTS
    assert asked_for_weights(hub) == ["model.safetensors bytes=100000-"]


def test_wrong_contents_are_fetched_once_more(hub: Hub, tmp_path: Path) -> None:
    hub.corrupt["model.safetensors"] = 1

    assert (bring(tmp_path).folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_contents_that_stay_wrong_are_never_served(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.corrupt[name] = 2

    assert f"twice sent a {name} of org/name that is not what it says it is" in refusal(tmp_path)
    assert Place.of(SOURCE, tmp_path).version is None
    assert bring(tmp_path).files == 3


def test_what_was_left_and_damaged_meanwhile_is_not_believed(hub: Hub, tmp_path: Path) -> None:
    hub.cut["model.safetensors"] = [100_000, 0, 0, 0]
    refusal(tmp_path)
    [part] = Place.of(SOURCE, tmp_path).staging.glob("model.safetensors.*.part")
    part.write_bytes(bytes(100_000))

    assert (bring(tmp_path).folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("seed", range(4))
def test_whatever_breaks_what_ends_up_here_is_right_or_said_to_be_missing(
    hub: Hub, tmp_path: Path, seed: int
) -> None:
    """Cuts, refusals, wrong bytes and lost ranges in any order, over as many fetches as it takes."""
    chance = random.Random(seed)
    for _ in range(6):
        hub.ignores_ranges = chance.random() < 0.3
        for name in USED:
            size = len(FILES[name])
            hub.cut[name] = [chance.randrange(size + 1) for _ in range(chance.randrange(4))]
            hub.refuse[name] = chance.choices([503, 429, 403], k=chance.randrange(3))
            hub.corrupt[name] = chance.randrange(3)
        try:
            folder = bring(tmp_path).folder
        except ModelUnavailable:
            assert Place.of(SOURCE, tmp_path).version is None
            continue
        assert {name: (folder / name).read_bytes() for name in names(folder)} == {
            name: FILES[name] for name in USED
        }
        (folder / chance.choice(sorted(USED))).write_bytes(b"damaged")


# ---------------------------------------------------------------- what is refused


def test_an_unknown_repository_says_so(hub: Hub, tmp_path: Path) -> None:
    said = refusal(tmp_path, "org/none")

    assert said.startswith(f"There is no 'org/none' at {hub.url}, or it is private and you may not")
    assert not list(tmp_path.iterdir())


def test_an_unknown_revision_says_so(hub: Hub, tmp_path: Path) -> None:
    assert "'org/name' at" in (said := refusal(tmp_path, "org/name@v9"))
    assert "has no revision 'v9'" in said


def test_a_gated_repository_names_the_page_with_its_terms(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/gated", FILES, readers={"good"})

    assert f"accept its terms at {hub.url}/org/gated first. Then set HF_TOKEN" in refusal(
        tmp_path, "org/gated"
    )
    monkeypatch.setenv("HF_TOKEN", "stranger")
    assert "the account of your HF_TOKEN may not fetch it" in refusal(tmp_path, "org/gated")
    monkeypatch.setenv("HF_TOKEN", "good")
    assert bring(tmp_path, "org/gated").files == 3


def test_the_token_is_shown_to_the_hub_and_not_to_the_host_that_sends_weights(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/private", FILES, is_private=True)
    monkeypatch.setenv("HF_TOKEN", "good")

    assert bring(tmp_path, "org/private").files == 3
    assert hub.leaks == []


def test_a_hub_that_is_not_there_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Hub()) as gone:
        pass
    point_to(monkeypatch, gone.url)

    assert f"{gone.url} can't be reached" in refusal(tmp_path)


def test_offline_mode_says_what_forbids_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    assert "HF_HUB_OFFLINE forbids" in refusal(tmp_path)


def test_what_will_not_fit_is_refused_before_it_is_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmhost.deploy.fetch.KEPT_FREE_BYTES", 2**60)

    assert "needs 304.9 KiB more on disk" in refusal(tmp_path)
    assert hub.asked == []


def test_a_folder_that_may_not_be_written_says_so(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "org--name").write_text("in the way")

    assert "Could not write org/name into" in refusal(tmp_path)


# ---------------------------------------------------------------- several processes


def start_pull(hub: Hub, data_dir: Path, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "llmhost",
            "pull",
            "hf:org/name",
            "--data-dir",
            str(data_dir),
            *words,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **settings(hub)},
    )


def wait_for_part(data_dir: Path, size_bytes: int) -> None:
    staging = Place.of(SOURCE, data_dir / "models").staging
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size >= size_bytes for p in staging.glob("model.*.part")):
        assert time.monotonic() < deadline, "nothing arrived"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_pull_that_is_killed_goes_on_next_time(
    hub: Hub, tmp_path: Path, number: signal.Signals
) -> None:
    hub.hold_after["model.safetensors"] = 100_000
    pull = start_pull(hub, tmp_path)
    wait_for_part(tmp_path, 100_000)
    pull.send_signal(number)
    _, said = pull.communicate(timeout=60)
    hub.released.set()
    assert pull.returncode == (130 if number == signal.SIGINT else -number)
    assert ("What has arrived is kept" in said) == (number == signal.SIGINT)
    hub.asked.clear()

    bring(tmp_path / "models")

    [asked] = asked_for_weights(hub)
    assert int(asked.removeprefix("model.safetensors bytes=").removesuffix("-")) >= 100_000


def test_of_two_pulls_at_once_one_fetches_and_both_end_well(hub: Hub, tmp_path: Path) -> None:
    hub.hold_after["model.safetensors"] = 100_000
    pull = start_pull(hub, tmp_path, "--json")
    wait_for_part(tmp_path, 100_000)
    seen: list[Progress] = []

    def release(progress: Progress) -> None:
        seen.append(progress)
        hub.released.set()

    fetched = fetch(SOURCE, tmp_path / "models", release)

    assert seen[0].is_waiting
    assert seen[0].done_bytes >= 100_000
    assert fetched.arrived_bytes == 0
    out, said = pull.communicate(timeout=60)
    assert (pull.returncode, said) == (0, "")
    assert f'"fetched_bytes": {fetched.total_bytes}' in out
    assert len(hub.asked) == 3


def test_a_disk_that_fills_up_midway_keeps_what_has_arrived(hub: Hub, tmp_path: Path) -> None:
    program = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\n"
        "from llmhost.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "pull", "hf:org/name", "--data-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **settings(hub)},
    )
    hub.asked.clear()

    assert done.returncode == 1
    assert done.stderr.startswith("Error: The disk is full (File too large): org/name did not fit")
    assert bring(tmp_path / "models").files == 3
    assert asked_for_weights(hub) == ["model.safetensors bytes=150000-"]
