"""What a step of the GGUF engine costs besides `llama_decode`: `python -m tests.bench.bench_gguf_step`.

Greedy rows over a vocabulary of 32,000, each with a sequence of its own. CPU time of the engine's thread, so that
whatever else runs on the machine adds little.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.unit.engines.gguf_models import write_random_llama
from tests.unit.engines.toy_scheduler import GREEDY

from llmhost.core.ports import RunnerFacts
from llmhost.core.step import Row
from llmhost.engines.llama.load import load_runner
from llmhost.engines.llama.settings import LoadSettings

SIZE, VOCABULARY, PROMPT_TOKENS = 16, 32_000, 40
FACTS = RunnerFacts(
    device="cpu:0",
    vocab_size=VOCABULARY,
    max_sequence_length=2048,
    block_tokens=SIZE,
    kv_block_bytes=1,
    weights_bytes=0,
)


class Timed:
    """llama.cpp, with the CPU time of `llama_decode` counted apart."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._decode = library.llama_decode
        self.decode_s = 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._library, name)
        setattr(self, name, found)
        return found

    def llama_decode(self, *given: Any) -> int:
        began = time.thread_time()
        code: int = self._decode(*given)
        self.decode_s += time.thread_time() - began
        return code


def overheads_ms(path: Path, count: int, steps: int, kv_layout: Any) -> list[float]:
    """Of each step that decodes `count` sequences."""
    settings = LoadSettings(
        batch_tokens=2048, rows=max(count, 2), threads=1, kv_type="f32", kv_layout=kv_layout
    )
    runner = load_runner(path, settings, FACTS)
    library: Any = Timed(runner._llama)
    runner._llama = library
    blocks = -(-(PROMPT_TOKENS + steps) // SIZE)
    runner.set_kv_blocks(4 * count * blocks)
    known = [[(7 * at + n) % 150 for n in range(PROMPT_TOKENS)] for at in range(count)]
    found = []
    for step in range(steps):
        rows = [_row(at, blocks, tokens, is_first=step == 0) for at, tokens in enumerate(known)]
        library.decode_s, began = 0.0, time.thread_time()
        drawn = runner.run(rows)
        found.append(1e3 * (time.thread_time() - began - library.decode_s))
        for tokens, token in zip(known, drawn, strict=True):
            assert isinstance(token, int)
            tokens.append(token)
    runner.close()
    return found


def _row(at: int, blocks: int, known: list[int], *, is_first: bool) -> Row:
    start = 0 if is_first else len(known) - 1
    needed = -(-len(known) // SIZE)
    return Row(
        seq_id=at,
        tokens=known[start:],
        start=start,
        blocks=[*range(at * blocks, at * blocks + needed)],
        sampling=GREEDY,
        seed=0,
        wants_token=True,
        prompt_tokens=PROMPT_TOKENS,
        known=known,
    )


def bar_ms(count: int) -> float:
    return 0.15 + 0.1 * count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--kv-layout", default="auto")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_random_llama(Path(folder) / "wide.gguf", vocabulary=VOCABULARY)
        for count in asked.sequences:
            found = sorted(overheads_ms(path, count, asked.steps, asked.kv_layout))
            p90 = found[int(0.9 * len(found))]
            sys.stdout.write(
                f"{count:3} sequences: {statistics.median(found):.3f} ms besides llama_decode, p90 {p90:.3f} ms"
                f" (bar {bar_ms(count):.2f})\n"
            )


if __name__ == "__main__":
    main()
