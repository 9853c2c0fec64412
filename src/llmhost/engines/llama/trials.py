"""Which files llama.cpp has been shown to take without ending its process, and the showing of those that aren't known.

A file is known by what its header holds, its size and the time when it was last written. What was found to be sound is
kept over restarts; what was not is remembered for as long as the node runs.
"""

import hashlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

import llmhost
from llmhost.config.environment import process_environment
from llmhost.core.errors import ModelUnavailable
from llmhost.engines.llama.context import Room
from llmhost.engines.llama.header import Header
from llmhost.engines.llama.settings import LoadSettings
from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.engines")

TRIED_BY = 1
"""Raised when a trial comes to try something else."""
LEAST_S, BYTES_PER_S = 120.0, 20 * 2**20
"""How long a trial may take, and how much longer for what it has to read of a slow disk."""
MORE_BYTES = 2 * 2**30
"""That a trial may take beyond the weights."""
WHY_LETTERS = 200
_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""What no file does to its process: memory ran out, or somebody ends the node."""
_TELLING = re.compile(r"GGML_ASSERT.*|GGML_ABORT.*|what\(\):.*|^\w*Error.*", re.MULTILINE)
"""Lines that say why a process ends."""


class Asked(msgspec.Struct, frozen=True):
    """What a process is to try."""

    path: bytes
    """Of its only or first file."""
    settings: LoadSettings
    rooms: list[Room]
    """That contexts may be given; none for a model that pools."""
    memory_bytes: int
    """More than that of memory that no file stands behind isn't given to it."""
    parent: int
    """Nobody waits for it once that process is gone."""


class Found(msgspec.Struct, frozen=True):
    """What came of it: why the model can't be run, if it can't."""

    refusal: str | None = None


class Trials:
    """Owner of what is known of files. Any thread may ask; one trial runs at a time."""

    def __init__(self, folder: Path | None = None, *, least_s: float = LEAST_S) -> None:
        """`folder` keeps what was sound; without one it is kept for as long as this lives."""
        self._folder = folder
        self._least_s = least_s
        self._known: dict[str, str | None] = {}
        """By mark: why the file isn't loaded, or None for one that may be."""
        self._lock = threading.Lock()

    def prove(self, header: Header, settings: LoadSettings, rooms: Sequence[Room]) -> None:
        """Raises ModelUnavailable for a file that llama.cpp should not be shown in this process."""
        mark = mark_of(header, settings)
        if mark not in self._known and self._is_kept(mark):
            self._known[mark] = None
        if mark not in self._known:  # what is known doesn't wait for what is being tried
            with self._lock:
                if mark not in self._known:
                    self._known[mark] = self._try(header, settings, rooms)
                    self._keep(mark, header)
        if (why := self._known[mark]) is not None:
            raise ModelUnavailable(why)

    def _try(self, header: Header, settings: LoadSettings, rooms: Sequence[Room]) -> str | None:
        asked = Asked(
            path=os.fsencode(header.path.absolute()),
            settings=settings,
            rooms=[*rooms],
            memory_bytes=header.weights_bytes + MORE_BYTES,
            parent=os.getpid(),
        )
        within_s = self._least_s + header.weights_bytes / BYTES_PER_S
        began_s = time.monotonic()
        why = _run(asked, within_s)
        took_s = round(time.monotonic() - began_s, 3)
        log_event(log, "gguf.tried", file=str(header.path), took_s=took_s, is_sound=why is None)
        return why

    def _is_kept(self, mark: str) -> bool:
        return self._folder is not None and (self._folder / mark).is_file()

    def _keep(self, mark: str, header: Header) -> None:
        """A disk that is full costs another trial after the next start, and nothing now."""
        if self._folder is not None and self._known[mark] is None:
            with suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
                (self._folder / mark).write_text(f"{header.path}\n")


def mark_of(header: Header, settings: LoadSettings) -> str:
    """Of a model's files and of what decides how llama.cpp computes it."""
    about = (
        TRIED_BY,
        _library_version(),
        settings.kv_type,
        settings.flash_attention,
        settings.kv_layout,
        settings.pooling,
    )
    digest = hashlib.sha256(repr((*about, header.tensors)).encode())
    for path in header.files:
        stat = path.stat()
        digest.update(f"\0{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    with header.path.open("rb") as file:
        digest.update(file.read(header.size_bytes))
    return digest.hexdigest()[:32]


def _library_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:  # put there in some other way
        return ""


def _run(asked: Asked, within_s: float) -> str | None:
    """Why the file isn't to be loaded, None if it may be. Raises ModelUnavailable where that isn't known."""
    ours = process_environment()
    paths = (str(Path(llmhost.__file__).parents[1]), ours.get("PYTHONPATH"))
    environment = {
        **ours,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONSAFEPATH": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GGML_NO_BACKTRACE": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "llmhost.engines.llama.trial"]
    name = os.fsdecode(asked.path)
    try:
        done = subprocess.run(
            command,
            input=msgspec.json.encode(asked),
            capture_output=True,
            timeout=within_s,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return (
            f"{name} is not loaded: llama.cpp was not done with trying it in {within_s:.0f} s. If the machine was busy,"
            " touch the file, and it is tried again."
        )
    if -done.returncode in _FROM_OUTSIDE:
        raise ModelUnavailable(  # and nothing is remembered
            f"{name} is not loaded: the process in which llama.cpp tried it was ended from outside"
            f" ({_end_of(done.returncode, b'')}), perhaps because memory ran out. Ask again."
        )
    if done.returncode:
        return (
            f"{name} is not loaded, for it ended the process in which llama.cpp tried it"
            f" ({_end_of(done.returncode, done.stderr)}). It is damaged, or made to do that."
        )
    return msgspec.json.decode(done.stdout, type=Found).refusal


def _end_of(code: int, said: bytes) -> str:
    """How a process ended, and the last thing that it said of that."""
    how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    telling = _TELLING.findall(said.decode("utf-8", "replace"))
    return ": ".join([how, *(line.strip()[:WHY_LETTERS] for line in telling[-1:])])
