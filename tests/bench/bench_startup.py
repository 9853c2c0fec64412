"""What a node's start is made of, in CPU seconds of one process: `python -m tests.bench.bench_startup`.

`--plain` leaves the search for garbage on while modules are imported, imports transformers with all that it names, and
has all threads check the model: as it was before any of these was thought of. Compare several runs of both, in turns: a
busy machine makes a second of CPU longer.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

from llmhost.core.imports import long_import

NAMES = Path(tempfile.gettempdir()) / "bench-startup-names.json"
"""What transformers finds out about itself, as a node keeps it."""


def _late() -> None:
    from llmhost.engines.torch.late import import_transformers

    import_transformers(NAMES)


def _parts(*, is_plain: bool) -> list[tuple[str, Callable[[], object]]]:
    parts: list[tuple[str, Callable[[], object]]] = [
        ("command line", partial(import_module, "llmhost.cli.serve")),
        ("server", partial(import_module, "llmhost.host")),
        ("torch", partial(import_module, "torch")),
    ]
    if not is_plain:
        parts.append(("transformers", _late))
    return [*parts, ("engine", partial(import_module, "llmhost.engines.torch.load"))]


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    began, began_cpu = time.perf_counter(), time.process_time()
    yield
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    sys.stdout.write(f"{what:24} {cpu_s:6.2f} s of CPU, {wall_s:6.2f} s\n")


def _model(is_plain: bool) -> None:
    import llmhost
    from llmhost.config.schema.engines import TorchOptions
    from llmhost.engines.torch import load
    from llmhost.engines.torch.late import late_imports

    if is_plain:
        load.threads_for = lambda size, device: contextlib.nullcontext()
    tiny = Path(llmhost.__file__).parent / "engines/builtin/tiny"
    with contextlib.nullcontext() if is_plain else late_imports():
        load.load_runner(tiny, block_tokens=16, options=TorchOptions(device="cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", action="store_true")
    is_plain: bool = parser.parse_args().plain
    around = contextlib.nullcontext if is_plain else long_import
    with _timed("all"):
        for what, act in _parts(is_plain=is_plain):
            with _timed(what), around():
                act()
        with _timed("builtin:tiny"):
            _model(is_plain)


if __name__ == "__main__":
    main()
