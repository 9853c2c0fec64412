"""Makes a written function this CPU's own code, and has torch's threads run it."""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch

from llmhost.engines.torch.native.code import Code

_OPTIMISED = 2
_WIDE = ("prefer-vector-width", "min-legal-vector-width")
"""Without these LLVM takes half of the widest registers on some CPUs, for fear of a lower clock."""


class Machine:
    """A function of this CPU. It holds no lock of Python's while it runs."""

    def __init__(self, code: Code) -> None:
        name = code.function.name
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly(_with_attributes(str(code.module), name))
        target = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(),
            features=llvm.get_host_cpu_features().flatten(),
            opt=_OPTIMISED,
            jit=True,
        )
        tuning = llvm.create_pipeline_tuning_options(speed_level=_OPTIMISED)
        passes = llvm.create_pass_builder(target, tuning).getModulePassManager()
        passes.run(module, llvm.create_pass_builder(target, tuning))
        self._engine = llvm.create_mcjit_compiler(module, target)  # the code lives as long
        self._engine.finalize_object()
        self._address = self._engine.get_function_address(name)
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._address)

    def run(self, job: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> None:
        """By as many threads as torch would take, which share `job`: numbers and addresses, eight bytes each.

        Returns when all are done.
        """
        threads, team = torch.get_num_threads(), _team()
        if threads == 1 or team is None:
            self._call(job.ctypes.data)
        else:
            team(self._address, job.ctypes.data, threads, 0)


def is_fit() -> bool:
    """This CPU multiplies and adds at once and widens float16, and torch's threads are to be had."""
    is_x86 = llvm.get_process_triple().startswith("x86_64")
    known = llvm.get_host_cpu_features()
    # Without f16c LLVM calls a library for it, which isn't there, and ends the process for that.
    has_all = not is_x86 or all(known.get(name) for name in ("fma", "f16c"))
    return has_all and _team() is not None


def has_wide_registers() -> bool:
    """32 of them, of 16 numbers each."""
    return bool(llvm.get_host_cpu_features().get("avx512f"))


@cache
def _team() -> Callable[[int, int, int, int], None] | None:
    """What has the threads of torch's own pool call a function; None where torch came without GNU's.

    Other threads beside them would have to wait, as the pool's go on to look for work for a while.
    """
    try:
        run: Any = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    run.restype = None
    team: Callable[[int, int, int, int], None] = run
    return team


def _with_attributes(text: str, name: str) -> str:
    """llvmlite knows no attributes but LLVM's own names."""
    head = f'define void @"{name}"(ptr %".1")'
    assert head in text
    return text.replace(head, head + "".join(f' "{one}"="512"' for one in _WIDE))
