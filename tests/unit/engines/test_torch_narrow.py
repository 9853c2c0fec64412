"""Models whose weights were made narrow: what they answer, and what they weigh."""

from pathlib import Path
from typing import Any

import pytest
import tests.unit.kernels.interpreting  # noqa: F401
import torch
import transformers
from tests.unit.engines.checkpoints import config_of, save_checkpoint
from tests.unit.engines.paged_steps import PagedSteps
from tests.unit.engines.toy_scheduler import Asked, ToyScheduler
from torch import Tensor, nn

import llmhost
from llmhost.config.schema.engines import TorchOptions
from llmhost.engines.torch.fused import FusedDecoder
from llmhost.engines.torch.load import load_runner
from llmhost.engines.torch.narrow import KINDS, narrow_weights, refusal, whole_of

CPU = torch.device("cpu")
TINY = Path(llmhost.__file__).parent / "engines/builtin/tiny"
MOST_OFF = {"fp8": 0.1, "int4": 0.35}
"""Relative error of logits."""
SHAPE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 2, "initializer_range": 0.04,
}  # fmt: skip


def made(family: str) -> Any:
    """A random model whose matrices any kind of narrow weights can hold."""
    torch.manual_seed(1)
    config = config_of(family, **SHAPE)
    return transformers.AutoModelForCausalLM.from_config(config).float().eval()


def logits(model: Any, ids: Tensor | None = None) -> Tensor:
    """[positions, vocabulary]"""
    with torch.inference_mode():
        ids = torch.arange(40)[None] * 7 % 250 if ids is None else ids
        result: Tensor = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
    return result


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_near_those_of_the_loaded_weights(kind: str, family: str):
    model = made(family)
    exact = logits(model)
    assert refusal(model, kind) is None

    narrow_weights(model, kind, CPU)

    off = (logits(model) - exact).norm(dim=1) / exact.norm(dim=1)
    assert 1e-3 < float(off.median()) < MOST_OFF[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_model_prefers_the_same_words(kind: str):
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    texts = torch.randint(250, (16, 64), generator=torch.Generator().manual_seed(1))
    exact = logits(model, texts)

    narrow_weights(model, kind, CPU)

    near = logits(model, texts)
    assert float(((near - exact).norm(dim=1) / exact.norm(dim=1)).median()) < MOST_OFF[kind]
    assert (
        float((near.argmax(1) == exact.argmax(1)).float().mean()) > {"fp8": 0.8, "int4": 0.7}[kind]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_loaded_weights_are_gone(kind: str):
    model = made("llama")
    before = sum(one.nbytes for one in model.model.layers.parameters())

    narrow_weights(model, kind, CPU)

    layers = model.model.layers
    kept = [*layers.parameters(), *layers.buffers()]
    assert sum(one.nbytes for one in kept) < 0.3 * before


def test_layers_that_are_fed_the_same_are_one_matrix():
    model = made("llama")
    narrow_weights(model, "fp8", CPU)
    attention = model.model.layers[0].self_attn
    x = torch.randn(2, 3, 256)

    whole = whole_of([attention.q_proj, attention.k_proj, attention.v_proj])

    assert whole is not None
    apart = [one(x) for one in (attention.q_proj, attention.k_proj, attention.v_proj)]
    assert torch.allclose(whole(x.flatten(0, 1)).view(2, 3, -1), torch.cat(apart, -1), atol=1e-5)
    assert whole_of([attention.q_proj, attention.o_proj]) is None
    assert whole_of([attention.q_proj, nn.Linear(2, 2)]) is None


def test_what_can_not_be_narrow_says_why():
    assert refusal(made("gpt2"), "fp8") == "its layers are not built like Llama's"
    model = made("llama")
    model.model.layers[1].mlp.down_proj = nn.Linear(120, 64)
    assert "matrix of 64 x 120 numbers" in str(refusal(model, "fp8"))
    model.model.layers[0].self_attn.k_proj = nn.Identity()
    assert "it has a Identity" in str(refusal(model, "fp8"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_fused_decoder_computes_with_the_narrow_weights(kind: str):
    model = made("qwen2")
    narrow_weights(model, kind, CPU)
    text = list(range(7, 18))

    decoder = FusedDecoder.of(model, 64)

    assert decoder is not None
    [states] = PagedSteps(model, [text]).run(decoder, chunks=(4,))
    exact = model.model(torch.tensor([text])).last_hidden_state[0]
    torch.testing.assert_close(states, exact, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(
        tmp_path_factory.mktemp("llama"), "llama", **{**SHAPE, "num_hidden_layers": 1}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_runner_serves_them(kind: str, folder: Path):
    """The options refuse the CPU, where narrow weights are slow; what is asked of the runner is the same."""
    options = TorchOptions(weights=kind, device="cpu")
    runner = load_runner(folder, block_tokens=16, options=options)
    plain = load_runner(folder, block_tokens=16, options=TorchOptions())
    assert runner.facts.weights_bytes < 0.7 * plain.facts.weights_bytes
    asked = [Asked([1, 2, 3], 3), Asked([9] * 20, 2)]
    together = ToyScheduler(runner).answer(*asked)
    assert together[0] == ToyScheduler(runner).answer(asked[0])[0]


def test_kernels_serve_them_too(folder: Path, monkeypatch: pytest.MonkeyPatch):
    options = TorchOptions(weights="fp8", device="cpu")
    asked = [Asked([1, 2, 3], 2)]
    plain = ToyScheduler(load_runner(folder, block_tokens=16, options=options)).answer(*asked)
    monkeypatch.setattr("llmhost.engines.torch.load.has_kernels", lambda device: True)
    monkeypatch.setattr("llmhost.engines.torch.load.launches_of", lambda *_, **__: [])

    runner = load_runner(folder, block_tokens=16, options=options)

    assert runner.path is not None and runner.path.decoder is not None
    assert ToyScheduler(runner).answer(*asked) == plain
