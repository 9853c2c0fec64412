"""Every family that is served gives generate's tokens, whatever way they are asked for: one line for each."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.engines.checkpoints import save_checkpoint
from tests.unit.engines.parity import WAYS, Score, reference
from tests.unit.engines.test_torch_quantised import KINDS, check

from llmhost.config.schema.engines import TorchOptions
from llmhost.engines.torch.load import load_runner

pytestmark = pytest.mark.bars

FAMILIES = [
    "afmoe", "apertus", "arcee", "cohere", "cohere2", "cohere2_moe", "cwm", "dots1", "ernie4_5", "ernie4_5_moe",
    "exaone4", "falcon", "falcon_new", "falcon_old", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text",
    "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss", "granite", "granitemoe",
    "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "llama", "minimax_m2", "ministral",
    "mistral_full", "mistral_window", "mixtral", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe",
    "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen2_window", "qwen3", "qwen3_moe",
    "qwen3_tied", "seed_oss", "smollm3", "stablelm", "stablelm_norm", "starcoder2", "vaultgemma",
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_answers_as_generate_does(
    family: str, tmp_path: Path, bar: Callable[[str], None]
) -> None:
    save_checkpoint(tmp_path, family)
    runner = load_runner(tmp_path, block_tokens=16, options=TorchOptions(device="cpu"))
    total = Score()
    for way in WAYS.values():
        total += way(runner, reference(tmp_path))
    bar(
        f"parity of {family}: {len(WAYS)} ways, {total.tokens} tokens, {len(total.wrong)} answers differ,"
        f" {total.ties} more at near-ties"
    )
    assert total.wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_answers_as_generate_does(
    kind: str, tmp_path: Path, bar: Callable[[str], None]
) -> None:
    check(kind, tmp_path)
    bar(f"parity of a model quantised as {kind}: 0 answers differ")
