"""What the compiler makes of every kernel for a Hopper GPU: `python -m tests.unit.kernels.gpu_report [WORD ...]`.

Each launch in all forms, on the shape of Llama 3.1 8B unless its name says another one; with words, those whose kernel
and form have all of them. No GPU is needed. It takes two minutes the first time.

Clocks are a multiprocessor's for one turn of the loop that computes or reads the most, each as if there were nothing
else: `issue` of instructions, `memory` at 4.8 TB/s, `matrix` of the tensor cores at their full rate, `special` of
exponentials. A kernel whose `issue` is near the largest of the others is slowed down by its own arithmetic.
"""

import importlib
import sys
from collections.abc import Iterator

from tests.unit.kernels.gpu_compiler import Facts, Launch, compiled

MODULES = [f"tests.unit.kernels.{of}_launches" for of in ("attention", "draw", "layers", "narrow")]
HEAD = (
    f"{'kernel and form':44} {'regs':>4} {'stack':>5} {'spill':>5} {'shared':>7} {'warps':>5} {'per SM':>6} {'code':>5}"
    f" | {'turn':>5} {'bytes':>6} {'issue':>6} {'memory':>6} {'matrix':>6} {'special':>7}"
    "  by, and loads (bytes at a time: bytes)"
)


def every_launch() -> Iterator[Launch]:
    for name in MODULES:
        module = importlib.import_module(name)
        yield from module.launches()
        yield from getattr(module, "more_launches", tuple)()


def row(facts: Facts) -> str:
    name = f"{facts.kernel.strip('_')} {facts.form}"
    line = (
        f"{name:44} {facts.registers:4} {facts.stack_bytes:5} {facts.spills:5} {facts.shared_bytes:7} {facts.warps:5}"
        f" {facts.programs:6} {facts.instructions:5} |"
    )
    if (turn := facts.loop) is None:
        return line
    loads = ", ".join(f"{size}: {count}" for size, count in turn.loads.items())
    return (
        f"{line} {turn.instructions:5} {facts.turn_bytes:6} {turn.issue_clocks:6.0f} {turn.memory_clocks:6.0f}"
        f" {turn.matrix_clocks:6.0f} {turn.special_clocks:7.0f}  {' '.join(facts.matrix) or '-'}, {loads}"
    )


def main() -> None:
    import triton

    out, words = sys.stdout, sys.argv[1:]
    out.write(f"Triton {triton.__version__}, compute capability 9.0\n{HEAD}\n")
    wanted = (
        one
        for one in every_launch()
        if all(word in f"{one.kernel.__name__} {one.form}" for word in words)
    )
    for facts in compiled(wanted):
        out.write(f"{row(facts)}\n")
        out.flush()


if __name__ == "__main__":
    main()
