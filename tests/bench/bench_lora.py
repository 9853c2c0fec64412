"""CPU time of a step of 32 decoders with LoRA adapters: `python -m tests.bench.bench_lora`.

A random Llama of 8 layers and hidden size 768, and 16 random adapters of rank 16 at every linear layer. Both ways
through a step are timed: adapter by adapter, and all loaded ones at once.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.sampling import Sampling
from llmhost.core.step import Row
from llmhost.engines.torch import lora
from llmhost.engines.torch.load import load_runner
from llmhost.engines.torch.random_model import RandomShape, write_random
from llmhost.engines.torch.runner import TorchRunner

ROUNDS = 15
ROWS, CONTEXT, BLOCK_TOKENS = 32, 200, 16
ADAPTERS, RANK = 16, 16
SHAPE = RandomShape(
    layers=8, hidden=768, ffn=2048, heads=12, kv_heads=4, vocab=4096, dtype="float32"
)


def write_adapter(folder: Path, model: torch.nn.Module) -> None:
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name != "lm_head"
    }
    tensors = {}
    for name, layer in layers.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, layer.in_features)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(layer.out_features, RANK)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 1, "target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def rows(adapters: int) -> list[Row]:
    per_row = CONTEXT // BLOCK_TOKENS + 2
    return [
        Row(
            i,
            [5],
            CONTEXT,
            range(i * per_row, (i + 1) * per_row),
            Sampling(temperature=0.0),
            0,
            wants_token=True,
            known=[5] * (CONTEXT + 1),
            adapter=f"a{i % adapters}" if adapters else None,
        )
        for i in range(ROWS)
    ]


def load(folder: Path) -> TorchRunner:
    write_random(folder, SHAPE)
    runner = load_runner(
        folder, block_tokens=BLOCK_TOKENS, options=TorchOptions(device="cpu", threads=1)
    )
    for i in range(ADAPTERS):
        write_adapter(folder / f"a{i}", runner._model)
        runner.adapters.add(f"a{i}", runner.adapters.read(folder / f"a{i}"))
    runner.set_kv_blocks(ROWS * (CONTEXT // BLOCK_TOKENS + 2))
    return runner


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runner = load(Path(folder))
    cases = [(0, 1024), *((count, way) for count in (1, 4, 16) for way in (1024, 0))]
    spent: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    for _ in range(ROUNDS):
        for count, way in cases:
            lora.ONE_BY_ONE["cpu"] = way
            started = time.thread_time()
            runner.run(rows(count))
            spent[count, way].append((time.thread_time() - started) * 1000)
    for (count, way), times in spent.items():
        how = "one by one" if way else "all at once"
        print(  # noqa: T201
            f"{count:2} adapters in the step, {how:11}: {statistics.median(times):6.1f} ms"
            f" ({min(times):.1f})"
        )


if __name__ == "__main__":
    main()
