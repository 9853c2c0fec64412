"""Modules that were replaced against the same modules before, in float32.

Triton's interpreter runs the kernels, or a GPU does where there is one.
"""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from tests.unit.engines.checkpoints import config_of
from torch import Tensor, nn

from llmhost.engines.torch.fused_modules import fuse_modules
from llmhost.engines.torch.kernels import layers as kernels

FUSED = {
    "llama": ["2 LlamaMLP", "5 LlamaRMSNorm"],
    "granite": ["2 GraniteMLP", "5 GraniteRMSNorm"],
    "olmo2": ["2 Olmo2MLP", "9 Olmo2RMSNorm"],
    "qwen3_moe": ["9 Qwen3MoeRMSNorm"],
    "gemma": [],
    "gpt2": [],
}


@pytest.fixture(autouse=True)
def on_the_device() -> Iterator[None]:
    torch.set_num_threads(1)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        yield


def model_of(family: str) -> Any:
    torch.manual_seed(3)
    config = config_of(family, num_hidden_layers=2)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            nn.init.normal_(module.weight, std=0.5)
    return model.eval().requires_grad_(False)


def logits(model: Any) -> Tensor:
    out: Tensor = model(torch.tensor([[5, 250, 9]]), use_cache=False).logits
    return out


@pytest.mark.parametrize("family", FUSED)
def test_what_computes_the_same_is_replaced(family: str) -> None:
    model = model_of(family)
    expected = logits(model)
    assert fuse_modules(model) == FUSED[family]
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_replaced_modules_are_still_what_they_were() -> None:
    model = model_of("llama")
    classes, weights = {type(one) for one in model.modules()}, model.state_dict().keys()
    fuse_modules(model)
    assert all(isinstance(one, tuple(classes)) for one in model.modules())
    assert model.state_dict().keys() == weights
    assert fuse_modules(model) == []


@pytest.mark.parametrize(
    ("kernel", "kept"), [("rms_norm", "LlamaRMSNorm"), ("silu_mul", "LlamaMLP")]
)
def test_a_replacement_that_is_off_is_undone(
    kernel: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    expected, right = logits(model), getattr(kernels, kernel)
    monkeypatch.setattr(kernels, kernel, lambda *given: right(*given) * 1.001)
    assert [line.split()[1] for line in fuse_modules(model)] == [
        name for name in ("LlamaMLP", "LlamaRMSNorm") if name != kept
    ]
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_an_epsilon_elsewhere_is_noticed() -> None:
    class AnRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(32)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)

    assert fuse_modules(AnRMSNorm()) == []


def test_a_norm_with_a_gate_is_left_alone() -> None:
    class AGatedRMSNorm(nn.RMSNorm):
        def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
            return super().forward(x if gate is None else x * gate)

    assert fuse_modules(AGatedRMSNorm(32, eps=1e-6)) == []


def test_hooks_on_a_replaced_mlps_layers_are_heard() -> None:
    plain = model_of("llama").model.layers[0].mlp
    ours, x = copy.deepcopy(plain), torch.randn(1, 3, 64)
    assert fuse_modules(ours) == ["1 LlamaMLP"]
    for mlp in (plain, ours):
        mlp.up_proj.register_forward_hook(lambda module, given, out: out * 2)
    assert ours(x).equal(plain(x))


def test_numbers_of_another_type_than_the_weights_go_the_old_way() -> None:
    norm = model_of("llama").model.norm
    x = torch.randn(1, 3, 64, dtype=torch.float64)
    expected = norm(x)
    assert fuse_modules(norm) == ["1 LlamaRMSNorm"]
    assert norm(x).equal(expected)
