"""The processes that read callers' grammars, and the handle that the server has of them.

A small text can be a bomb: `{"multipleOf": 9999991}` keeps a core busy for minutes, a chain of 2,000 references runs
out of stack, and neither can be stopped within a process. So each grammar is read once in a child that the kernel
ends when a reading takes too much processor time or memory. What it passes, the server reads without fear.

`python -m llmhost.text.grammar_child` is the child: a request and an answer a line, until its input ends.
"""

import atexit
import contextlib
import json
import logging
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from llmhost.text.grammar_source import Unreadable, read_grammar

CPU_S = 0.5
"""Processor time for one grammar. Real schemas take 34 ms at the 99th percentile."""
CHILDREN = 2
"""Of one process: who asks while one child reads a grammar that was made to hurt is answered by the other."""
MEMORY_BYTES = 1 << 30
STACK_BYTES = 2 << 20
"""A quarter of what threads of the server have: what does not overflow here does not overflow there."""

log = logging.getLogger("llmhost.grammar")


class Died(Exception):
    """The child ended over a grammar; the text says what it ran out of."""


class Reader:
    """The server's handle of its children, which are started when they are first needed. Any thread may ask."""

    def __init__(self, children: int = CHILDREN) -> None:
        self._free = threading.Semaphore(children)
        self._idle: list[subprocess.Popen[bytes]] = []
        """The one that was last asked is the next to be: a second one is there only for those who would wait."""
        self._lock = threading.Lock()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """A child's answer. Raises Died."""
        with self._free:
            process = self._take()
            line = _exchange(process, json.dumps(question).encode() + b"\n")
            if not line:
                self._put_back(_start(), is_cold=True)
                raise Died(_cause(_end(process)))
            self._put_back(process)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the children. The next question starts another one."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            _end(process)

    def _take(self) -> "subprocess.Popen[bytes]":
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.poll() is None:
                    return process
                _end(process)  # somebody else has killed it
        return _start()

    def _put_back(self, process: "subprocess.Popen[bytes]", *, is_cold: bool = False) -> None:
        """A cold one is asked last: nobody need wait until it has started."""
        with self._lock:
            self._idle.insert(0 if is_cold else len(self._idle), process)


def _start() -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-m", "llmhost.text.grammar_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for the server, which ends the child by closing its input
    )
    log.debug("grammar_child.started pid=%d", process.pid)
    return process


READER = Reader()
"""The one of this process."""
atexit.register(READER.close)


def _exchange(process: "subprocess.Popen[bytes]", question: bytes) -> bytes:
    """The answer's line; empty when the child ends instead."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(question)
        process.stdin.flush()
    except BrokenPipeError:
        return b""
    return process.stdout.readline()


def _end(process: "subprocess.Popen[bytes]") -> int:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()
    return process.wait()


def _cause(status: int) -> str:
    if status == -signal.SIGPROF:
        return f"it takes more than {CPU_S:g} s of processor time to read"
    if status == -signal.SIGSEGV:
        return "it is nested too deeply"
    return "it takes too much memory to read"


# ------------------------------------------------------------ the child's side


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until there are no more questions."""
    for line in questions:
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        answer = _read(json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _read(question: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"grammar": read_grammar(**question)}
    except Unreadable as fault:
        return {"fault": fault.message, "place": fault.place}
    except BaseException as error:  # noqa: BLE001 - boundary: the library raises, and panics, over what it is given
        return {"fault": str(error)[:500] or type(error).__name__, "place": ""}


def _in_thread(act: Callable[[], None]) -> None:
    """On a stack whose size is known."""
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()


def _bound() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    _bound()
    _in_thread(lambda: serve(sys.stdin.buffer, sys.stdout.buffer))
