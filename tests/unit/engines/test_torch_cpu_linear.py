"""Linear layers that widen 16-bit weights give what float32 gives, for every number of rows and every shape."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.engines.checkpoints import save_checkpoint
from tests.unit.engines.toy_scheduler import GREEDY
from torch import nn

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.step import Row
from llmhost.engines.torch import cpu_linear
from llmhost.engines.torch.cpu_linear import WideningLinear, is_slow_here, widen_where_it_helps
from llmhost.engines.torch.layout import lay_out
from llmhost.engines.torch.load import load_runner


@pytest.fixture
def slow_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An x86 without 16-bit arithmetic, whatever this machine is."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"})


def widened(inputs: int, outputs: int, dtype: torch.dtype, *, bias: bool = True) -> WideningLinear:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(inputs, outputs, bias=bias)).to(dtype).requires_grad_(False)
    linear = model[0]
    linear.__class__ = WideningLinear
    linear.room, linear.packed = cpu_linear.Room(), None
    assert isinstance(linear, WideningLinear)
    return linear


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sampled_from([1, 4, 5, 10, 11, 100, 256, 300]),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    bias=st.booleans(),
    slice_elements=st.sampled_from([1, 50, 2**17]),
    threads=st.sampled_from([1, 2]),
)
def test_the_result_is_float32s_rounded_once(
    rows: int,
    sizes: tuple[int, int],
    dtype: torch.dtype,
    bias: bool,
    slice_elements: int,
    threads: int,
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        for name in ("SOME_ELEMENTS", "MORE_ELEMENTS", "MANY_ELEMENTS"):
            patch.setattr(cpu_linear, name, slice_elements)
        linear = widened(*sizes, dtype, bias=bias)
        asked = torch.randn(1, rows, sizes[0]).to(dtype)

        got = linear(asked)

    exact = nn.functional.linear(
        asked.float(), linear.weight.float(), None if linear.bias is None else linear.bias.float()
    )
    assert got.dtype is dtype
    assert got.shape == (1, rows, sizes[1])
    assert got.is_contiguous()
    torch.testing.assert_close(got.float(), exact, rtol=2**-7, atol=2**-6)


@pytest.mark.usefixtures("slow_cpu")
def test_16_bit_layers_are_widened_and_float32_ones_left_alone():
    half = nn.Sequential(nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4).half(), nn.Linear(4, 4))

    assert widen_where_it_helps(half) == 2
    assert type(half[0]) is type(half[1]) is WideningLinear
    assert type(half[2]) is nn.Linear


@pytest.mark.parametrize(
    "can",
    [
        {"architecture": "x86_64", "avx512_bf16": True},
        {"architecture": "x86_64", "amx_bf16": True},
        {"architecture": "aarch64"},
    ],
)
def test_a_cpu_that_has_the_arithmetic_keeps_torchs_layers(
    can: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)

    assert not is_slow_here(torch.empty(2, 2, dtype=torch.bfloat16))


@pytest.mark.usefixtures("slow_cpu")
def test_a_loaded_bf16_model_is_widened_and_agrees_with_itself_in_float32(tmp_path: Path):
    folder = save_checkpoint(tmp_path, "llama")
    rows = [Row(0, list(range(40)), 0, [0, 1, 2], GREEDY, 0, wants_token=True)]
    rows += [Row(i, [i], 0, [i + 2], GREEDY, 0, wants_token=True) for i in range(1, 8)]

    logits, kinds = [], []
    for dtype in ("bfloat16", "float32"):
        options = TorchOptions(dtype=dtype, device="cpu", threads=1)
        runner = load_runner(folder, block_tokens=16, options=options)
        runner.set_kv_blocks(12)
        with torch.inference_mode():
            layout = lay_out(rows, block_tokens=16, device=runner.device)
            logits.append(runner.forward(layout))
        kinds.append({type(module) for module in runner._model.modules()})

    assert WideningLinear in kinds[0]
    assert WideningLinear not in kinds[1]
    assert logits[0] is not None
    assert logits[1] is not None
    assert (logits[0].float() - logits[1]).norm() < 0.05 * logits[1].norm()
