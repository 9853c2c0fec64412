"""Files that llama.cpp ends its process over: another process meets them first, and the node says what came of it."""

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp", reason="needs the extra gguf")

from tests.unit.engines.gguf_models import write_random_llama

from llmhost.config.schema.models import ModelSpec
from llmhost.core.errors import ModelUnavailable
from llmhost.deploy.sources import find_files
from llmhost.engines.llama import trials
from llmhost.engines.llama.context import Room
from llmhost.engines.llama.header import read_header
from llmhost.engines.llama.kind import LlamaKind
from llmhost.engines.llama.settings import LoadSettings
from llmhost.engines.llama.trial import allowed
from llmhost.engines.llama.trials import Asked, Trials, mark_of
from llmhost.testing import make_host

SETTINGS = LoadSettings(batch_tokens=64, rows=4, threads=1)
ROOMS = [Room(256), Room(256, 4)]


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", refuse)


def deadly(path: Path) -> Path:
    """Heads of 16 numbers of which 6 turn, in an architecture that has no such heads."""
    return write_random_llama(path, layers=1, architecture="internlm2", rotated=6)


async def test_a_file_that_ends_a_process_ends_another_one_and_other_models_answer(
    tmp_path: Path,
) -> None:
    source = str(deadly(tmp_path / "deadly.gguf"))
    models = {
        "deadly": ModelSpec(engine="llama", source=source, load="request"),
        "fake": ModelSpec(engine="fake"),
    }
    async with make_host(models=models) as host:
        body = {"model": "deadly", "prompt": "hello", "max_tokens": 2}
        answer = await host.client.post("/v1/completions", json=body)
        other = await host.client.post("/v1/completions", json={**body, "model": "fake"})

    assert answer.status_code == 503
    error = answer.json()["error"]
    assert error["code"] == "model_unavailable"
    assert "ended the process" in error["message"] and "SIGABRT: GGML_ASSERT" in error["message"]
    assert other.status_code == 200


def test_what_was_sound_is_not_tried_again_and_what_was_not_stays_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = read_header(write_random_llama(tmp_path / "sound.gguf", layers=1))
    other = read_header(write_random_llama(tmp_path / "other.gguf", layers=1, seed=1))
    first = Trials(tmp_path / "tried")
    first.prove(sound, SETTINGS, ROOMS)
    calls: list[Asked] = []
    monkeypatch.setattr(trials, "_run", lambda asked, within_s: calls.append(asked) or "It dies.")

    later = Trials(tmp_path / "tried")
    for one in (first, later):
        one.prove(sound, SETTINGS, ROOMS)
    for _ in range(2):
        with pytest.raises(ModelUnavailable, match="It dies"):
            later.prove(other, SETTINGS, ROOMS)

    assert [Path(os.fsdecode(asked.path)).name for asked in calls] == ["other.gguf"]
    with pytest.raises(ModelUnavailable, match="It dies"):
        Trials(tmp_path / "tried").prove(other, SETTINGS, ROOMS)


@pytest.mark.usefixtures("no_process")
def test_files_and_ways_to_compute_are_told_apart(tmp_path: Path) -> None:
    path = write_random_llama(tmp_path / "m.gguf", layers=1)
    marks = [mark_of(read_header(path), SETTINGS)]
    marks.append(mark_of(read_header(path), LoadSettings(batch_tokens=64, rows=4, kv_type="q8_0")))
    os.utime(path, ns=(1, 1))
    marks.append(mark_of(read_header(path), SETTINGS))
    write_random_llama(path, layers=1, context=2048)
    os.utime(path, ns=(1, 1))
    marks.append(mark_of(read_header(path), SETTINGS))

    assert len({*marks}) == len(marks)
    assert mark_of(read_header(path), LoadSettings(batch_tokens=9, rows=8)) == marks[-1]


def test_a_file_that_was_replaced_since_its_memory_was_planned_is_tried_before_it_is_loaded(
    tmp_path: Path,
) -> None:
    path = write_random_llama(tmp_path / "m.gguf", layers=1)
    kind, spec = LlamaKind(), ModelSpec(engine="llama", source=str(path))
    facts = kind.footprint(spec, path)
    larger = replace(facts, weights_bytes=facts.weights_bytes + 1)

    with pytest.raises(ModelUnavailable, match="another model"):
        kind.load(spec, path, larger)
    deadly(path)
    with pytest.raises(ModelUnavailable, match="ended the process"):
        kind.load(spec, path, facts)


def test_a_trial_that_takes_too_long_or_too_much_is_ended(tmp_path: Path) -> None:
    header = read_header(write_random_llama(tmp_path / "m.gguf", layers=1))
    small = Asked(os.fsencode(header.path), SETTINGS, ROOMS, memory_bytes=2**20, parent=os.getpid())

    with pytest.raises(
        ModelUnavailable, match=r"was not done with trying it in 0 s.*touch the file"
    ):
        Trials(least_s=0.0).prove(header, SETTINGS, ROOMS)
    why = trials._run(small, 60.0)

    assert why is not None and "ended the process" in why


def test_a_trial_that_somebody_ends_says_nothing_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = read_header(write_random_llama(tmp_path / "m.gguf", layers=1))
    tried = Trials()

    with monkeypatch.context() as patched:
        script = tmp_path / "python"
        script.write_text("#!/bin/sh\nkill -9 $$\n")
        script.chmod(0o755)
        patched.setattr(sys, "executable", str(script))
        with pytest.raises(ModelUnavailable, match=r"ended from outside \(SIGKILL\)"):
            tried.prove(header, SETTINGS, ROOMS)

    tried.prove(header, SETTINGS, ROOMS)


def test_a_trial_is_content_with_the_memory_that_the_node_was_given() -> None:
    assert allowed(2**31, resource.RLIM_INFINITY) == 2**31
    assert allowed(2**31, 2**30) == 2**30
    assert allowed(2**31, 2**40) == 2**31


@pytest.mark.usefixtures("no_process")
def test_a_built_in_model_is_known_and_not_tried(tmp_path: Path) -> None:
    spec = ModelSpec(engine="llama", source="builtin:tiny-gguf")
    path = find_files(spec.source, tmp_path)

    assert LlamaKind(tmp_path / "tried").footprint(spec, path).weights_bytes
    assert not (tmp_path / "tried").exists()
