"""The engine's bench: its arithmetic, and one real run of a random model."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmhost.cli.bench import engine
from llmhost.cli.bench.engine import Case, Step, figures, loaded, run_case
from llmhost.cli.main import app
from llmhost.config.schema.engines import TorchOptions
from llmhost.engines.torch import bench
from llmhost.engines.torch.bench import Ceilings, ModelWork, model_work
from llmhost.engines.torch.random_model import RandomShape, write_random

SHAPE = RandomShape(layers=2, hidden=64, ffn=96, heads=4, kv_heads=2, vocab=200, dtype="float32")
WORK = ModelWork(
    weights_bytes=1000, token_flops=100, logits_flops=10, kv_token_bytes=8, attention_flops=4
)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(request.param)
    write_random(made, RandomShape(**{**_fields(SHAPE), "family": request.param}))
    return made


def _fields(shape: RandomShape) -> dict[str, Any]:
    return {name: getattr(shape, name) for name in shape.__dataclass_fields__}


def test_a_random_model_runs_and_every_step_feeds_what_it_should(folder: Path):
    options = TorchOptions(dtype="float32", device="cpu", threads=1)

    with loaded(folder, options, block_tokens=16) as (runner, measuring):
        decode = run_case(measuring, Case("decode", 3, 40), 4)
        prefill = run_case(measuring, Case("prefill", 1, 50), 4)

        assert [step.fed for step in decode] == [3] * 4
        assert {step.fed for step in prefill} == {50}
        assert all(step.forward_ns > 0 and step.sample_ns > 0 for step in decode + prefill)
        assert all(step.python_ns > 0 for step in decode)
        assert "forward" not in vars(runner) or runner.facts.vocab_size == 200


def test_early_sequences_go_on_while_the_prompts_of_many_others_are_computed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine, "PREFILL_CHUNK", 24)
    options = TorchOptions(dtype="float32", device="cpu", threads=1)

    with loaded(folder, options, block_tokens=16) as (_, measuring):
        decode = run_case(measuring, Case("decode", 6, 50), 3)

    assert [step.fed for step in decode] == [6, 6, 6]
    assert all(step.seen >= 6 * 50 for step in decode)


def test_the_least_that_a_model_must_move_and_compute(folder: Path):
    options = TorchOptions(dtype="float32", device="cpu", threads=1)
    with loaded(folder, options, block_tokens=16) as (runner, _):
        work = model_work(runner)

        embedding = 200 * 64
        assert work.weights_bytes == runner.facts.weights_bytes - 4 * embedding - _rope_bytes(
            runner
        )
        assert work.logits_flops == 2 * embedding
        assert work.kv_token_bytes == 2 * 2 * 2 * 16 * 4
        assert work.attention_flops == 4 * 2 * 64


def _rope_bytes(runner: Any) -> int:
    buffers = {b.data_ptr(): b.nbytes for b in runner._model.buffers()}
    return sum(buffers.values())


def test_a_decode_steps_floor_is_its_bytes_or_its_arithmetic():
    steps = [Step(2_000_000_000, 1_500_000_000, 100_000_000, 400_000_000, 2, 2 * 14)] * 3
    context = 14
    moved = 1000 + 2 * context * 8
    flops = 2 * 100 + 2 * 10 + 2 * context * 4

    by_bytes = figures(Case("decode", 2, 10), steps, WORK, Ceilings(moved, 1e9))
    by_flops = figures(Case("decode", 2, 10), steps, WORK, Ceilings(1e9, flops))

    assert (by_bytes.step_bytes, by_bytes.context) == (moved, context)
    assert by_bytes.floor_ms == by_flops.floor_ms == 1000
    assert by_bytes.roofline_share == 0.5
    assert by_bytes.tokens_per_s == 1.0
    assert by_bytes.python_ms == pytest.approx(400)


def test_a_prefills_attention_is_a_triangle():
    one = figures(Case("prefill", 1, 3), [Step(10**9, 0, 0, 0, 3, 3)], WORK, Ceilings(1e12, 1.0))

    assert one.floor_ms == 1e3 * (3 * 100 + 10 + 6 * 4)
    assert one.tokens_per_s == 3


def test_the_command_prints_a_table_and_json(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "_STREAM_BYTES", 2**16)
    monkeypatch.setattr(bench, "_SIDE", 32)
    args = ["bench", "engine", "--random-layers", "1", "--random-hidden", "64", "--random-vocab"]
    args += ["100", "--batch", "1,2", "--context", "20", "--prefill", "30", "--steps", "2"]
    args += ["--threads", "1", "--device", "cpu"]

    text = CliRunner().invoke(app, args, catch_exceptions=False)
    data = json.loads(CliRunner().invoke(app, [*args, "--json"], catch_exceptions=False).stdout)

    assert text.exit_code == 0
    assert "random llama of 1 layers x 64" in text.stdout
    assert "ROOF" in text.stdout
    assert [(c["kind"], c["batch"]) for c in data["cases"]] == [
        ("decode", 1),
        ("decode", 2),
        ("prefill", 1),
    ]
    assert all(case["step_ms"] > 0 for case in data["cases"])


def test_a_context_that_the_model_lacks_is_refused():
    result = CliRunner().invoke(app, ["bench", "engine", "--context", "4000", "--threads", "1"])

    assert result.exit_code == 2
    assert "2048" in result.stderr
