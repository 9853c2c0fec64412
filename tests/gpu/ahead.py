"""Kernels compiled before there is a GPU: `python -m tests.gpu.ahead record FOLDER`, and there `... fill FOLDER`.

`record` needs no GPU. It goes through what the benchmark does, with one layer of the same shape, and has every launch
compiled for Hopper in place of being made; FOLDER then has a list of the launches and what the compiler made of them.
`fill` puts that into Triton's cache under the names that the Triton of that machine looks for: they have the bytes of
its library in them, which differ between versions of Python. What another compiler made, or of a kernel that has
changed since, is compiled again, in many processes at once, and so are the launchers, which are C and can only be made
where they run.
"""

import ast
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

COMPUTE_CAPABILITY = 90
SHARED_BYTES, MULTIPROCESSORS = 232_448, 132
LIST = "launches.txt"
_PLAIN = {"debug": False, "instrumentation_mode": ""}
"""What Triton asks of every launch."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A kernel in one of its forms: all that the compiler is told."""

    kernel: str
    """Module and name."""
    signature: Mapping[str, str]
    constants: Mapping[tuple[int, ...], Any]
    attributes: Mapping[tuple[int, ...], Any]
    options: Mapping[str, Any]
    """Those that are not as ever."""

    def line(self) -> str:
        parts = (self.kernel, self.signature, self.constants, self.attributes, self.options)
        return repr(tuple(dict(part) if isinstance(part, Mapping) else part for part in parts))

    @classmethod
    def of_line(cls, line: str) -> "Wanted":
        return cls(*ast.literal_eval(line))

    def source(self) -> Any:
        from triton.compiler import ASTSource

        module, _, name = self.kernel.rpartition(".")
        kernel = getattr(importlib.import_module(module), name)
        return ASTSource(kernel, dict(self.signature), dict(self.constants), dict(self.attributes))


def _target() -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget("cuda", COMPUTE_CAPABILITY, 32)


def _compiler() -> str:
    """What has to be the same for machine code to be taken over."""
    import triton
    from triton.backends.nvidia.compiler import get_ptxas_version

    return f"{triton.__version__} {get_ptxas_version(COMPUTE_CAPABILITY)}"


# ---------------------------------------------------------------- here, without a GPU


class _NoGpu:
    """Triton's driver as far as compiling needs one."""

    utils = SimpleNamespace(
        get_device_properties=lambda index: {
            "max_shared_mem": SHARED_BYTES,
            "multiprocessor_count": MULTIPROCESSORS,
        }
    )

    def get_current_target(self) -> Any:
        return _target()

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiled_only(*, compiles: bool = True) -> Iterator[dict[str, Any]]:
    """Until the block ends launches compile and do nothing, or not even that. Gives what is compiled for them, by
    `Wanted.line`."""
    import triton
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import JITFunction

    plain = vars(make_backend(_target()).parse_options(_PLAIN))
    found: dict[str, Any] = {}
    run, compiling = JITFunction.run, JITFunction._do_compile

    def run_nothing(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return run(self, *args, grid=grid, warmup=True, **kwargs)

    def compile_and_note(
        self: Any,
        key: Any,
        signature: Any,
        device: Any,
        constants: Any,
        options: Any,
        attributes: Any,
        warmup: Any,
    ) -> Any:
        made = None
        if compiles:
            made = compiling(self, key, signature, device, constants, options, attributes, warmup)
        told = {name: value for name, value in vars(options).items() if plain[name] != value}
        name = f"{self.__module__}.{self.__name__}"
        found[Wanted(name, signature, constants, attributes, told).line()] = made
        return made

    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(_NoGpu())
    JITFunction.run, JITFunction._do_compile = run_nothing, compile_and_note
    try:
        yield found
    finally:
        JITFunction.run, JITFunction._do_compile = run, compiling
        triton.runtime.driver._active = before


def record(folder: Path, walk: Callable[[], None]) -> int:
    """Compile what `walk` launches; returns how many kernels that are."""
    folder.mkdir(parents=True, exist_ok=True)
    with compiled_only() as found:
        walk()
    (folder / "compiler.txt").write_text(_compiler())
    (folder / LIST).write_text("".join(f"{line}\n" for line in found))
    for number, (line, made) in enumerate(found.items()):
        (folder / f"{number}.source").write_text(Wanted.of_line(line).source().hash())
        (folder / f"{number}.cubin").write_bytes(made.asm["cubin"])
        (folder / f"{number}.json").write_text(json.dumps(made.metadata._asdict(), default=vars))
    return len(found)


# ---------------------------------------------------------------- there, with one


def fill(folder: Path, *, processes: int | None = None, launchers: bool = True) -> dict[str, int]:
    """Have Triton's cache know all kernels of the list. Returns how many were taken over, compiled, and failed."""
    count = len((folder / LIST).read_text().splitlines())
    workers = min(processes or os.cpu_count() or 1, count)
    told = {"taken over": 0, "compiled": 0, "failed": 0}
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        each = [
            pool.submit(_fill_some, folder, range(number, count, workers), launchers)
            for number in range(workers)
        ]
        for one in each:
            for outcome in one.result():
                told[outcome] += 1
    return told


def _fill_some(folder: Path, numbers: range, launchers: bool) -> list[str]:
    is_same = (folder / "compiler.txt").read_text() == _compiler()
    lines = (folder / LIST).read_text().splitlines()
    return [
        _fill_one(Wanted.of_line(lines[number]), folder, number, is_same, launchers)
        for number in numbers
    ]


def _fill_one(wanted: Wanted, folder: Path, number: int, is_same: bool, launchers: bool) -> str:
    import triton

    outcome = "compiled"
    try:
        source = wanted.source()
        options = {**_PLAIN, **wanted.options}
        if is_same and (folder / f"{number}.source").read_text() == source.hash():
            _take_over(source, options, folder, number)
            outcome = "taken over"
        made = triton.compile(source, target=_target(), options=options)
        if launchers:
            triton.runtime.driver.active.launcher_cls(made.src, made.metadata)
    except Exception as error:  # noqa: BLE001 - one that can't be had is compiled when it is launched
        sys.stderr.write(f"{wanted.kernel}: {error!r}\n")
        return "failed"
    return outcome


def _take_over(source: Any, options: Mapping[str, Any], folder: Path, number: int) -> None:
    """As if this Triton had compiled it."""
    import hashlib

    from triton._C.libtriton import get_cache_invalidating_env_vars
    from triton.compiler.compiler import make_backend
    from triton.runtime.cache import get_cache_key, get_cache_manager

    backend = make_backend(_target())
    key = get_cache_key(
        source, backend, backend.parse_options(dict(options)), get_cache_invalidating_env_vars()
    )
    name = hashlib.sha256(key.encode()).hexdigest()
    kept = get_cache_manager(name)
    metadata = {**json.loads((folder / f"{number}.json").read_text()), "hash": name}
    files = {
        f"{source.name}.cubin": (folder / f"{number}.cubin").read_bytes(),
        f"{source.name}.json": json.dumps(metadata),
    }
    group = {file: kept.put(content, file) for file, content in files.items()}
    kept.put_group(f"{source.name}.json", group)


def main(words: list[str]) -> int:
    action, folder = words[0], Path(words[1]).absolute()
    began = time.perf_counter()
    if action == "record":
        from tests.gpu.ahead_walk import walk

        sys.stdout.write(f"{record(folder, walk)} kernels\n")
    else:
        sys.stdout.write(f"{json.dumps(fill(folder))}\n")
    sys.stdout.write(f"{time.perf_counter() - began:.1f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
