"""What narrow numbers save, and where they can't be had."""

from typing import Any

import pytest
from tests.unit.kernels import attention_doubles as doubles

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.errors import ModelUnavailable
from llmhost.engines.torch import narrow_sizes
from llmhost.engines.torch.narrow import GROUPS
from llmhost.engines.torch.narrow_sizes import NARROW_LAYERS, check_options

FP8, FP8_KV = TorchOptions(weights="fp8"), TorchOptions(kv_dtype="fp8")


def refusal(
    options: TorchOptions,
    device: str = "cuda:0",
    capability: tuple[int, int] | None = (9, 0),
    task: str = "generate",
) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        check_options(options, device=device, capability=capability, task=task)
    return caught.value.message


def test_the_layers_that_are_counted_are_those_that_become_narrow():
    assert {name for _, names in GROUPS for name in names} == set(NARROW_LAYERS)


def test_a_new_gpu_can_do_everything():
    for options in (FP8, FP8_KV, TorchOptions(weights="int4", kv_dtype="fp8")):
        check_options(options, device="cuda:0", capability=(8, 9), task="generate")


def test_the_cpu_has_no_narrow_weights_but_a_narrow_cache():
    assert "needs a GPU, and this model would run on cpu:0" in refusal(FP8, "cpu:0", None)
    check_options(FP8_KV, device="cpu:0", capability=None, task="generate")


@pytest.mark.parametrize("options", [FP8, FP8_KV])
def test_an_older_gpu_is_told_what_it_lacks(options: TorchOptions):
    told = refusal(options, capability=(8, 6))
    assert "needs a GPU of compute capability 8.9 or more, and cuda:0 has 8.6" in told


def test_four_bits_need_less_of_a_gpu():
    four = TorchOptions(weights="int4")
    check_options(four, device="cuda:0", capability=(8, 0), task="generate")
    assert "compute capability 8.0 or more, and cuda:0 has 7.5" in refusal(four, capability=(7, 5))


def test_narrow_weights_need_triton(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs Triton, which is not installed: pip install triton" in refusal(FP8)


def test_a_model_that_embeds_has_no_narrow_weights():
    assert "this one is to embed" in refusal(FP8, task="embed")


@pytest.mark.parametrize("option", ["triton", "flashinfer", "flash_attention_3"])
def test_who_attends_on_a_gpu_is_not_asked_on_a_cpu(option: Any):
    asked = TorchOptions(attention=option)
    assert "needs a GPU, and this model would run on cpu:0" in refusal(asked, "cpu:0", None)
    assert "this one is to embed" in refusal(asked, task="embed")


def test_a_library_that_attends_must_be_there_and_made_for_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
):
    hopper = TorchOptions(attention="flash_attention_3")
    doubles.remove(monkeypatch)
    assert "FlashAttention-3 is not installed" in refusal(hopper)
    assert "pip install 'llmhost[flashinfer]'" in refusal(TorchOptions(attention="flashinfer"))
    doubles.install_fa3(monkeypatch)
    check_options(hopper, device="cuda:0", capability=(9, 0), task="generate")
    assert "made for compute capability 9.0, and this GPU has 8.9" in refusal(
        hopper, capability=(8, 9)
    )


def test_a_library_attends_beside_our_kernels(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(narrow_sizes, "kernels_refusal", lambda environ: "no compiler")
    assert "needs our kernels beside it. no compiler." in refusal(TorchOptions(attention="triton"))
