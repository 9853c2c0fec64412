"""Triton's real compiler on kernels, for a GPU that need not be here, and what became of them.

The interpreter accepts more than the compiler does. `python -m tests.unit.kernels.gpu_compiler MODULE ...` compiles
what the function `launches` of each module says, in one process that doesn't interpret, and tells what NVIDIA's tools
say of the machine code. `gpu_report` prints it as a table.
"""

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.unit.kernels.machine_code import (
    SHARED_BYTES,
    Compiled,
    MachineCode,
    machine_codes,
)

COMPUTE_CAPABILITY = 90


class Launch(NamedTuple):
    """A kernel with the types of its arguments (`*bf16`, `i32`), its constants, and what it is launched with."""

    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, Any]
    form: str = ""
    """What tells it from other launches of the kernel."""
    turn_bytes: int = 0
    """What each turn of its loop brings from memory by all means: keys and values, or weights."""
    odd: Sequence[str] = ()
    """Numbers that are no multiples of 16. The others are, in a real model."""
    capability: int = COMPUTE_CAPABILITY
    shared_bytes: int = SHARED_BYTES
    """What a program may have there."""


class Facts(NamedTuple):
    """What became of a launch."""

    kernel: str
    form: str
    registers: int
    stack_bytes: int
    spills: int
    shared_bytes: int
    shared_limit: int
    warps: int
    programs: int
    """That a multiprocessor has room for."""
    matrix: Sequence[str]
    instructions: int
    turn_bytes: int
    loop: "Turn | None"


class Turn(NamedTuple):
    """What the busiest loop does in a turn. Clocks are a multiprocessor's, as if that were all there is to do."""

    instructions: int
    loads: Mapping[str, int]
    """Bytes that a program reads, by how many a thread reads at a time."""
    issue_clocks: float
    memory_clocks: float
    matrix_clocks: float
    special_clocks: float


def told_of(modules: Sequence[str]) -> dict[str, tuple[str, list[Facts]]]:
    """Compile the launches of the modules in another process: what each had to say if it failed, and the facts."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.unit.kernels.gpu_compiler", *modules]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    told = {}
    for module, failure, lists in map(json.loads, done.stdout.splitlines()):
        told[module] = failure, [_facts_again(one) for one in lists]
    return {module: told.get(module, (done.stderr or "nothing was told", [])) for module in modules}


def compiled(launches: Iterable[Launch]) -> Iterator[Facts]:
    import triton

    known = list(launches)
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    codes = machine_codes([_compile(launch) for launch in known], tools)
    for launch, code in zip(known, codes, strict=True):
        yield _facts(launch, code)


def _facts_again(told: list[Any]) -> Facts:
    *given, loop = told
    return Facts(*given, loop and Turn(*loop))


def _facts(launch: Launch, code: MachineCode) -> Facts:
    turn = None
    if (loop := code.busiest) is not None:
        loads: Counter[str] = Counter()
        for one in loop.instructions:
            if one.name in ("LDG", "LDGSTS"):
                loads[str(one.bytes)] += 32 * code.warps * one.bytes
        turn = Turn(
            instructions=len(loop.instructions),
            loads=loads,
            issue_clocks=loop.issue_clocks,
            memory_clocks=loop.memory_clocks(launch.turn_bytes),
            matrix_clocks=loop.matrix_clocks,
            special_clocks=loop.special_clocks,
        )
    return Facts(
        kernel=launch.kernel.__name__,
        form=launch.form,
        registers=code.registers,
        stack_bytes=code.stack_bytes,
        spills=code.spills,
        shared_bytes=code.shared_bytes,
        shared_limit=launch.shared_bytes,
        warps=code.warps,
        programs=code.programs_per_multiprocessor,
        matrix=sorted(code.matrix_instructions),
        instructions=len(code.instructions),
        turn_bytes=launch.turn_bytes,
        loop=turn,
    )


def _compile(launch: Launch) -> Compiled:
    """Pointers and numbers are multiples of 16, as in a real model, unless the kernel or the launch says otherwise."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    missing = set(names) - set(launch.types) - set(launch.constants)
    assert not missing, f"{launch.kernel.__name__} needs a type or a constant for {missing}"
    loose = {
        one.name
        for one in launch.kernel.params
        if one.do_not_specialize or one.do_not_specialize_on_alignment
    }
    even = [
        at
        for at, name in enumerate(names)
        if launch.types.get(name, "").startswith(("*", "i")) and name not in {*loose, *launch.odd}
    ]
    source = ASTSource(
        launch.kernel,
        {name: launch.types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in launch.constants.items()},
        attrs={(at,): [["tt.divisibility", 16]] for at in even},
    )
    target = GPUTarget("cuda", launch.capability, 32)
    made = triton.compile(source, target=target, options=dict(launch.options))
    assert made.asm["ptx"]
    meta = made.metadata
    return Compiled(made.asm["cubin"], launch.capability, meta.shared, meta.num_warps)


def main() -> None:
    for module in sys.argv[1:]:
        failure, facts = "", []
        try:
            facts = list(compiled(importlib.import_module(module).launches()))
        except Exception:  # noqa: BLE001 - told, so that the other modules are tried too
            failure = traceback.format_exc()
        sys.stdout.write(f"{json.dumps([module, failure, facts])}\n")


if __name__ == "__main__":
    main()
