"""Weights on their way to a real GPU: they arrive as they are stored, and how fast. Run with -s for the figures."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.sampling import Sampling
from llmhost.core.step import Row
from llmhost.core.units import show_bytes
from llmhost.engines.torch.file_reader import Read, read_all
from llmhost.engines.torch.layout import lay_out
from llmhost.engines.torch.load import load_runner
from llmhost.engines.torch.merged import merge
from llmhost.engines.torch.random_model import RandomShape, write_random
from llmhost.engines.torch.runner import TorchRunner
from llmhost.engines.torch.weights import read_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GIB = 2**30
SHAPE = RandomShape(layers=10, hidden=2048, ffn=5632, heads=16, kv_heads=4, vocab=32_000)
"""Just over 1 GiB in bfloat16."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("random")
    write_random(made, SHAPE)
    return made


def test_every_weight_arrives_as_it_is_stored(folder: Path) -> None:
    device = torch.device("cuda", 0)
    config = transformers.AutoConfig.from_pretrained(folder)

    for _ in range(2):  # the second time, page-locked memory is there already
        model = read_model(folder, config, dtype=torch.bfloat16, attention="eager", device=device)

    right = load_file(folder / "model.safetensors")
    assert all(model.get_parameter(name).cpu().equal(weight) for name, weight in right.items())
    assert model.model.rotary_emb.inv_freq.device == device
    mlp = model.model.layers[3].mlp
    place = mlp.gate_proj.weight.data_ptr()
    assert merge([mlp.gate_proj, mlp.up_proj])[0].data_ptr() == place


@pytest.mark.parametrize("readers", [2, 4, 8, 12])
@pytest.mark.parametrize("slab_mib", [4, 16, 64])
def test_how_fast_a_file_goes_to_the_device(folder: Path, readers: int, slab_mib: int) -> None:
    path = folder / "model.safetensors"
    size = path.stat().st_size
    target = torch.empty(size, dtype=torch.uint8, device="cuda:0")
    reads = [Read(path, 0, size, torch.uint8, target)]
    took_s = min(
        read_all(reads, device=target.device, slab_bytes=slab_mib * 2**20, readers=readers)
        for _ in range(3)
    )
    print(
        f"\n{readers} readers, slabs of {slab_mib} MiB: {size / GIB / took_s:.1f} GiB/s of {show_bytes(size)}"
    )
    assert target[:4096].cpu().numpy().tobytes() == path.read_bytes()[:4096]


def test_elements_are_converted_on_the_device(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    path = folder / "floats"
    path.write_bytes(stored.float().view(torch.uint8).numpy().tobytes())
    target = torch.empty_like(stored, device="cuda:0")

    read_all([Read(path, 0, stored.numel() * 4, torch.float32, target)], device=target.device)

    assert target.cpu().equal(stored)


def test_a_loaded_model_is_ready_and_its_memory_is_what_its_weights_take(folder: Path) -> None:
    runner = load_runner(folder, block_tokens=16, options=TorchOptions(device="cuda:0"))
    try:
        measured = runner.facts.measured_bytes
        assert measured is not None
        assert measured < runner.facts.weights_bytes * 1.5  # not twice
    finally:
        runner.close()


def test_a_model_that_slept_gives_the_same_logits_to_the_last_bit(folder: Path) -> None:
    runner = load_runner(folder, block_tokens=16, options=TorchOptions(device="cuda:0"))
    try:
        before = _logits(runner)
        runner.set_kv_blocks(0)
        held = torch.cuda.memory_allocated()

        sleep_s, wake_s = [], []
        for _ in range(3):
            sleep_s.append(_took_s(runner.sleep))
            assert torch.cuda.memory_allocated() < held - runner.facts.weights_bytes * 0.9
            wake_s.append(_took_s(runner.wake))

        gib = runner.facts.weights_bytes / GIB
        print(
            f"\n{gib:.2f} GiB: to sleep in {min(sleep_s):.3f} s (first {sleep_s[0]:.3f}),"
            f" awake in {min(wake_s):.3f} s, {gib / min(wake_s):.1f} GiB/s"
        )
        assert torch.cuda.memory_allocated() <= held * 1.01
        assert _logits(runner).equal(before)
    finally:
        runner.close()


def _took_s(act: Callable[[], None]) -> float:
    began_s = time.perf_counter()
    act()
    torch.cuda.synchronize()
    return time.perf_counter() - began_s


def _logits(runner: TorchRunner) -> torch.Tensor:
    runner.set_kv_blocks(8)
    greedy = Sampling(temperature=0.0)
    rows = [Row(0, list(range(5, 60)), 0, [1, 2, 3, 4], greedy, 0, True)]
    with torch.inference_mode():
        logits = runner.forward(lay_out(rows, block_tokens=16, device=runner.device))
    assert logits is not None
    return logits.clone()
