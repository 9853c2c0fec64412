"""What all tests share: the long checks run only when asked for, and server processes can be had."""

import gc
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from llmhost.storage.schema import Schema

# The default run looks at the same examples each time, so that it fails for a change and not by chance. A busy machine
# is not a failure either. `make bars` searches at random.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("searching", deadline=None, max_examples=300, print_blob=True)
settings.load_profile("steady")

# Hundreds of servers and commands are started. Compiling the source for each would take longer than all tests.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

HAS_GPU = Path("/dev/nvidia0").exists()
if not HAS_GPU:
    # Without a GPU Triton's own interpreter runs the kernels, on the CPU. It has to know before they are defined.
    os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.append(str(Path(__file__).parent / "http"))  # for server_process.py


MEMORY = Path("/dev/shm")
ROOM_BYTES = 4 << 30

TESTS = Path(__file__).parent
DEAREST = (
    "house/test_tools.py",
    "unit/engines/test_torch_on_a_gpu.py",
    "unit/engines/test_torch_exactness.py",
    "http/test_tenants.py",
    "unit/engines/test_builtin_tiny.py",
    "http/test_adapters.py",
    "unit/engines/test_torch_fused.py",
    "http/test_invoices.py",
    "unit/engines/test_torch_lora.py",
    "http/test_gguf.py",
    "unit/kernels/test_draw.py",
    "unit/engines/test_torch_kernel_path.py",
    "http/test_operators.py",
    "unit/engines/test_llama_runner.py",
    "unit/engines/llama/test_windows.py",
    "http/test_packing.py",
    "docs/test_models_doc.py",
)
"""Begun first, the one that takes longest foremost, so that no worker is left with one of them at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Files are kept in memory where there is room: every database syncs what it is told, and a disk makes it wait.

    The long checks are to wait for a disk as a node does, and to compute with as many threads.
    """
    config.option.loadscopereorder = False  # ours is better than xdist's, which counts tests alone
    if any(mark in config.option.markexpr for mark in ("bars", "gpu")):
        return
    # Two workers keep two cores busy: threads that wait for each other's part of a sum would keep others from theirs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "TMPDIR" in os.environ or not MEMORY.is_dir():
        return
    if shutil.disk_usage(MEMORY).free > ROOM_BYTES:
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None  # asked for anew


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """What a shell or nohup told this run to ignore, the programs that tests start must not ignore."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # a handler is not inherited, and does as little


@pytest.fixture(scope="session", autouse=True)
def new_files_are_copies() -> Iterator[None]:
    """A new database is a copy of the first one of its kind: to make its tables step by step is half of what it takes a
    whole node to start and to end. Servers in processes of their own take every step."""
    from llmhost.storage import writer

    migrate, lock = writer.migrate, threading.Lock()
    kinds: dict[tuple[tuple[str, ...], ...], sqlite3.Connection] = {}

    def make_or_copy(connection: sqlite3.Connection, schemas: Iterable[Schema]) -> None:
        kind = tuple((schema.name, *schema.steps) for schema in schemas)
        is_new = connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        with lock:
            if is_new and kind in kinds:
                kinds[kind].backup(connection)
                return
            migrate(connection, schemas)
            if is_new:
                kinds[kind] = sqlite3.connect(":memory:", check_same_thread=False)
                connection.backup(kinds[kind])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "migrate", make_or_copy)
        yield
    for connection in kinds.values():
        connection.close()


@pytest.fixture(scope="session", autouse=True)
def signatures_are_read_once() -> Iterator[None]:
    """The framework registers a node's routes without reading the same functions again, for every node."""
    from known_signatures import share_signatures

    end = share_signatures()
    yield
    end()


@pytest.fixture(scope="module", autouse=True)
def nothing_left_over() -> Iterator[None]:
    """What the tests of a file left open is found before those of another file, which would be blamed for it.

    What is alive then is not gone through again after each of hundreds of files, but once at the very end.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def warm_starts() -> Iterator[None]:
    """Servers and commands start without the wait for their imports. Not for the long checks, which measure starts."""
    import server_process

    with server_process.warm_starts():
        yield


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The long checks are not even imported when they don't run: what they need takes seconds to import."""
    return True if collection_path.name == "bars" and "bars" not in config.option.markexpr else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported and collected stays to the end, so nobody searches it for garbage before."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_sessionfinish() -> None:
    """Here pytest itself looks for what nobody closed."""
    gc.unfreeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long checks run only when `-m` names them, and so do those for a GPU where there is none."""
    apart = [mark for mark in ("bars", "gpu") if mark not in config.option.markexpr]
    if HAS_GPU and "gpu" in apart:
        apart.remove("gpu")
    kept, left = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        (left if any(map(item.get_closest_marker, apart)) else kept).append(item)
    config.hook.pytest_deselected(items=left)
    counts = Counter(item.path for item in kept)
    places = {TESTS / name: place for place, name in enumerate(DEAREST)}
    items[:] = sorted(
        kept, key=lambda item: (places.get(item.path, len(places)), -counts[item.path], item.path)
    )
