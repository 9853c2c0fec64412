"""Triton's real compiler on one kernel, for a GPU that need not be here.

The interpreter accepts more than the compiler does. `python -m tests.unit.kernels.gpu_compiler MODULE ...` compiles
what the function `launches` of each module says, in one process that doesn't interpret.
"""

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

COMPUTE_CAPABILITY = 90


class Launch(NamedTuple):
    """A kernel with the types of its arguments (`*bf16`, `i32`), its constants, and what it is launched with."""

    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, Any]


def compile_all(modules: Sequence[str]) -> dict[str, str]:
    """Compile the launches of the modules in another process; what each had to say if it failed, else nothing."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.unit.kernels.gpu_compiler", *modules]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    told = dict(json.loads(line) for line in done.stdout.splitlines())
    return {module: told.get(module, done.stderr or "nothing was told") for module in modules}


def _compile(launch: Launch) -> str:
    """The kernel's PTX. Pointers and numbers that are called strides are multiples of 16, as in a real model."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    missing = set(names) - set(launch.types) - set(launch.constants)
    assert not missing, f"{launch.kernel.__name__} needs a type or a constant for {missing}"
    even = [
        at
        for at, name in enumerate(names)
        if launch.types.get(name, "").startswith("*") or name.endswith("stride")
    ]
    source = ASTSource(
        launch.kernel,
        {name: launch.types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in launch.constants.items()},
        attrs={(at,): [["tt.divisibility", 16]] for at in even},
    )
    target = GPUTarget("cuda", COMPUTE_CAPABILITY, 32)
    ptx: str = triton.compile(source, target=target, options=dict(launch.options)).asm["ptx"]
    return ptx


def main() -> None:
    for module in sys.argv[1:]:
        failure = ""
        try:
            launches: Iterable[Launch] = importlib.import_module(module).launches()
            assert all(_compile(launch) for launch in launches)
        except Exception:  # noqa: BLE001 - told, so that the other modules are tried too
            failure = traceback.format_exc()
        sys.stdout.write(f"{json.dumps([module, failure])}\n")


if __name__ == "__main__":
    main()
