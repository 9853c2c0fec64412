"""The benchmark's own parts, rehearsed without a GPU."""

import json
from pathlib import Path

import pytest
import torch
from tests.gpu import bench_h200, peer
from tests.gpu.models import SHAPES, random_transformers, write_folder
from tests.gpu.report import Figure, Report

from llmhost.config.schema.engines import TorchOptions
from llmhost.engines.torch.load import load_runner
from llmhost.text.tokenizer import load_tokenizer

CPU = torch.device("cpu")


def test_what_two_places_measured_is_one_line_of_the_table(tmp_path: Path) -> None:
    report = Report(tmp_path / "figures.jsonl")
    report.add(Figure(what="step", unit="ms", ours=3.0, floor=2.0))
    report.add(Figure(what="step", unit="ms", peer=9.0))

    assert report.table().splitlines()[1].split() == ["step", "ms", "2", "3", "1.5", "9"]
    lines = (tmp_path / "figures.jsonl").read_text().splitlines()
    assert [json.loads(line)["ours"] for line in lines] == [3.0, None]


def test_a_written_folder_is_a_model_with_a_tokenizer(tmp_path: Path) -> None:
    shape = SHAPES["tiny"]

    written = write_folder(tmp_path, shape, CPU)

    runner = load_runner(tmp_path, block_tokens=16, options=TorchOptions())
    assert runner.facts.weights_bytes >= written > 0
    assert runner.facts.vocab_size == load_tokenizer(tmp_path).vocab_size == shape.vocab


def test_a_rehearsal_on_the_cpu_measures_without_failing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--shape", "tiny", "--device", "cpu", "--only", "ceilings,prefill"]

    status = bench_h200.main([*words, "--out", str(tmp_path / "figures.jsonl")])

    assert status == 0
    said = capsys.readouterr().out
    assert "prefill 50" in said
    assert "mixed 2 x 40 + 32" in said


def test_transformers_decodes_all_at_once_though_few_of_its_pages_are_free() -> None:
    model = random_transformers(SHAPES["tiny"], CPU, "sdpa")

    assert peer.continuous(model, peer.PeerCase(24, 512, 8), page=64) > 0
