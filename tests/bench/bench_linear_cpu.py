"""CPU time of one 16-bit linear layer, torch's own beside ours: `python -m tests.bench.bench_linear_cpu`.

One thread, the least of some rounds in milliseconds. Eight layers take turns, so that none stays in the cache. The
thresholds in `engines/torch/cpu_linear.py` come from these figures.
"""

import copy
import sys
import time

import torch
from torch import nn

from llmhost.engines.torch.cpu_linear import Room, WideningLinear, is_slow_here

ROUNDS = 5
LAYERS = 8
ROWS = (1, 4, 5, 8, 16, 32, 64, 128, 256, 512)


def least_ms(layers: list[nn.Linear], asked: torch.Tensor) -> float:
    times = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for layer in layers:
            layer(asked)
        times.append(time.thread_time() - began)
    return 1e3 * min(times) / len(layers)


def main() -> None:
    torch.set_num_threads(1)
    out = sys.stdout
    for inputs, outputs in ((1024, 3072), (3072, 1024)):
        plain = [nn.Linear(inputs, outputs, bias=False).bfloat16() for _ in range(LAYERS)]
        wide = [nn.Linear(inputs, outputs, bias=False) for _ in range(LAYERS)]
        ours = [nn.Linear(inputs, outputs, bias=False).bfloat16() for _ in range(LAYERS)]
        room = Room()
        for layer in ours:
            layer.__class__ = WideningLinear
            layer.room = room  # type: ignore[assignment]
            layer.packed = None  # type: ignore[assignment]
        packed = copy.deepcopy(ours)
        for layer in packed:
            layer.pack()
        slow = (
            ""
            if is_slow_here(plain[0].weight)
            else ": this CPU computes in bf16 itself, and keeps torch's layers"
        )
        out.write(
            f"{inputs} to {outputs}{slow}\n    rows  torch bf16  widened  packed  torch float32\n"
        )
        with torch.inference_mode():
            for rows in ROWS:
                asked = torch.randn(rows, inputs)
                out.write(
                    f"{rows:8}  {least_ms(plain, asked.bfloat16()):10.2f}"
                    f"  {least_ms(ours, asked.bfloat16()):7.2f}  {least_ms(packed, asked.bfloat16()):6.2f}"
                    f"  {least_ms(wide, asked):13.2f}\n"
                )
                out.flush()


if __name__ == "__main__":
    main()
