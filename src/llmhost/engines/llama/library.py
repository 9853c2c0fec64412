"""llama.cpp as a library: imported once, told to log through us, and never when it isn't asked for."""

import ctypes
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from llmhost.core.errors import ModelUnavailable

log = logging.getLogger("llmhost.llama")

HOW_TO_INSTALL = (
    "GGUF models need the extra `gguf`: pip install 'llmhost[gguf]', or make setup EXTRAS=gguf"
    " (it is built from source, which needs a C++ compiler and takes minutes)."
)
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.DEBUG, 4: logging.WARNING}
"""llama.cpp tells much at load that is news to nobody, and calls errors what its callers handle."""
_kept: list[Any] = []
"""What C code points at: it must live as long as the process."""
_listeners: dict[int, Callable[[str], None]] = {}
"""By the thread whose calls they listen to."""
_lock = threading.Lock()


def llama() -> Any:
    """The bindings. Raises ModelUnavailable that says how to install them."""
    with _lock:
        return _import()


@cache
def _import() -> Any:
    try:
        from llama_cpp import llama_cpp
    except ImportError as error:
        raise ModelUnavailable(HOW_TO_INSTALL) from error
    callback = llama_cpp.llama_log_callback(_log)
    _kept.append(callback)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@contextmanager
def listening(hear: Callable[[str], None]) -> Iterator[None]:
    """Hear what llama.cpp says of this thread's calls: some numbers it tells in no other way."""
    here = threading.get_ident()
    _listeners[here] = hear
    try:
        yield
    finally:
        del _listeners[here]


def _log(level: int, text: bytes, _: Any) -> None:
    """Called from llama.cpp's own threads as well."""
    if (hear := _listeners.get(threading.get_ident())) is not None:
        hear(text.decode("utf-8", "replace"))
    severity = _LEVELS.get(level)
    if text.startswith(b"state_"):  # no room to restore into: more is made, and nobody need know
        severity = logging.DEBUG
    if severity is not None and log.isEnabledFor(severity):
        log.log(severity, "llama.cpp %s", text.decode("utf-8", "replace").rstrip())
