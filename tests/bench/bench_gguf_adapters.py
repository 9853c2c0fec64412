"""What a LoRA adapter adds to a step of a GGUF model: `python -m tests.bench.bench_gguf_adapters MODEL.gguf`.

One thread, and its CPU time. The model is one of `bench_gguf.py`'s, or any that has queries and values apart.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tests.bench.bench_gguf_step import FACTS
from tests.unit.engines.toy_scheduler import GREEDY

from llmhost.core.step import Row
from llmhost.engines.llama.adapter_files import Pair
from llmhost.engines.llama.adapters import Written
from llmhost.engines.llama.header import Header, read_header
from llmhost.engines.llama.load import load_runner
from llmhost.engines.llama.runner import LlamaRunner
from llmhost.engines.llama.settings import LoadSettings

RANK, STEPS, NAME = 16, 20, "random@1"


def pairs_for(model: Header) -> Iterator[Pair]:
    random = np.random.default_rng(0)
    for tensor in model.tensors:
        if tensor.name.endswith((".attn_q.weight", ".attn_v.weight")):
            inputs, outputs = tensor.shape
            a, b = ((random.standard_normal(s) / 100) for s in ((RANK, inputs), (outputs, RANK)))
            yield Pair(tensor.name, a.astype(np.float32), b.astype(np.float32))


def step_ms(runner: LlamaRunner, adapters: Sequence[str | None], start: int) -> float:
    """The median of steps with a row for each adapter, after `start` others."""
    found = []
    for position in range(start, start + STEPS):
        rows = [
            Row(at, [5 + at], position, [*range(10 * at, 10 * at + 10)], GREEDY, 0, True)._replace(
                adapter=adapter
            )
            for at, adapter in enumerate(adapters)
        ]
        began = time.thread_time()
        runner.run(rows)
        found.append(1e3 * (time.thread_time() - began))
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    path = parser.parse_args().model
    header = read_header(path)
    runner = load_runner(path, LoadSettings(batch_tokens=512, rows=8, threads=1), FACTS)
    runner.set_kv_blocks(40)
    written = Written([*pairs_for(header)], str(header.metadata["general.architecture"]))
    runner.adapters.add(NAME, written)
    loads: tuple[tuple[str, list[str | None], int], ...] = (
        ("one row without", [None], 0),
        ("one row with it", [NAME], STEPS),
        ("two rows without", [None, None], 0),
        ("one of each", [None, NAME], STEPS),
    )
    for told, adapters, start in loads:
        sys.stdout.write(f"{told:18} {step_ms(runner, adapters, start):7.1f} ms\n")
    runner.close()


if __name__ == "__main__":
    main()
