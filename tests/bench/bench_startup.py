"""What a node's start is made of, in CPU seconds of one process: `python -m tests.bench.bench_startup`.

`--plain` leaves the search for garbage on while modules are imported, and has all threads check the model: as it was
before either was thought of. Compare several runs of both, in turns: a busy machine makes a second of CPU longer.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from llmhost.core.imports import long_import

PARTS = (
    ("command line", "llmhost.cli.main"),
    ("server", "llmhost.host"),
    ("torch and transformers", "llmhost.engines.torch.load"),
)


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    began, began_cpu = time.perf_counter(), time.process_time()
    yield
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    sys.stdout.write(f"{what:24} {cpu_s:6.2f} s of CPU, {wall_s:6.2f} s\n")


def _model(is_plain: bool) -> None:
    import llmhost
    from llmhost.config.schema import TorchOptions
    from llmhost.engines.torch import load

    if is_plain:
        load.threads_for = lambda size, device: contextlib.nullcontext()
    tiny = Path(llmhost.__file__).parent / "engines/builtin/tiny"
    load.load_runner(tiny, block_tokens=16, options=TorchOptions(device="cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", action="store_true")
    is_plain: bool = parser.parse_args().plain
    around = contextlib.nullcontext if is_plain else long_import
    with _timed("all"):
        for what, module in PARTS:
            with _timed(what), around():
                import_module(module)
        with _timed("builtin:tiny"):
            _model(is_plain)


if __name__ == "__main__":
    main()
