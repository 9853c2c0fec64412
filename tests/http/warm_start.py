"""Servers and commands without the wait for imports: one process imports llmhost, and forks each that a test starts.

A fork runs the program from its first line to the interpreter's end, with a session, signals and files of its own. All
that it has not done itself is seconds of imports, which hundreds of starts would spend again and again.
"""

import asyncio
import ctypes
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from known_signatures import share_signatures

PATIENCE_S = 300.0
MOST_BYTES = 1 << 17
PR_SET_PDEATHSIG = 1
"""Of prctl: the signal that a process gets when its parent ends."""
SERVING = (
    "litestar.exceptions.responses",
    "litestar.middleware.allowed_hosts",
    "litestar.middleware.csrf",
    "litestar.middleware.response_cache",
    "pydantic.networks",
    "sqlite_utils.plugins",
    "typer._adapters",
    "uvicorn.lifespan.off",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
)
"""What a server imports on top of `llmhost.host` before it is ready."""
TORCH = (
    "llmhost.engines.torch.late",
    "llmhost.engines.torch.load",
    "transformers.models.llama.modeling_llama",
)
"""What it imports to load a model by the torch engine. Other servers are to show that they do without."""


class WarmStart:
    """The process that forks, and the door to it. Close it when nothing is to be started any more."""

    def __init__(self, environ: Mapping[str, str], modules: Sequence[str] = SERVING) -> None:
        self._door, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with inner:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(inner.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                pass_fds=[inner.fileno()],
                env=environ,
                start_new_session=True,  # a Ctrl-C is for the tests, which then end what they started
            )

    def start(
        self, words: Sequence[str], *, out: int, err: int, cwd: str, env: Mapping[str, str]
    ) -> "Forked":
        """`llmhost WORDS` in a process of its own, with these files as its output."""
        order = json.dumps({"words": words, "cwd": cwd, "env": dict(env)}).encode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._door, [order], [theirs.fileno(), out, err])
        return Forked(words, ours)

    def close(self) -> None:
        self._door.close()
        self._process.wait(PATIENCE_S)


class Forked:
    """What tests use of `subprocess.Popen`, for a process whose parent tells how it ended."""

    def __init__(self, args: Sequence[str], parent: socket.socket) -> None:
        self.args = args
        self.returncode: int | None = None
        self._parent = parent
        parent.settimeout(PATIENCE_S)
        self.pid = int(parent.recv(64))

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._parent.settimeout(timeout)
            try:
                self.returncode = int(self._parent.recv(64))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
            self._parent.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def end_with_parent() -> None:
    """Of tests that are killed nothing goes on: their end of the door closes, so who forks ends, and so on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def fork_for(door: socket.socket) -> dict[str, Any] | None:
    """Answers in each process that is to be the program, with its order; in the one that forks once nobody asks."""
    while True:
        message, files, _, _ = socket.recv_fds(door, MOST_BYTES, 3)
        if not message:
            return None
        if os.fork() == 0:
            end_with_parent()
            return fork_and_watch(door, message, *files)
        for file in files:
            os.close(file)
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass  # the parent of one that ended, which has told so


def fork_and_watch(
    door: socket.socket, message: bytes, teller: int, out: int, err: int
) -> dict[str, Any]:
    """Answers in the child. Its parent tells its pid, and then its exit status as `Popen` has it."""
    door.close()
    pid = os.fork()
    if pid == 0:
        end_with_parent()
        os.dup2(out, 1)
        os.dup2(err, 2)
        for file in {teller, out, err}:
            os.close(file)
        order: dict[str, Any] = json.loads(message)
        return order
    os.close(out)
    os.close(err)
    with socket.socket(fileno=teller) as tell:
        tell.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        tell.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


async def register_routes() -> None:
    """Of a node that is gone again: what is read of their functions, those that are forked know."""
    from llmhost.testing import make_host

    async with make_host() as node:
        node.host.app.routes.register()


def main() -> None:
    sys.path[0] = ""
    from llmhost.core.imports import long_import

    with long_import():
        import typer.main

        import llmhost.host  # what `serve` imports
        from llmhost.__main__ import main as program
        from llmhost.cli.main import app

        typer.main.get_command = cache(typer.main.get_command)
        typer.main.get_command(app)  # from ninety functions, which takes a tenth of a second
        for name in sys.argv[2:]:
            module = importlib.import_module(name)
            if name == TORCH[0]:
                module.import_transformers()
        share_signatures()
        asyncio.run(register_routes())
    assert threading.active_count() == 1, "a fork would be without the others"

    order = fork_for(socket.socket(fileno=int(sys.argv[1])))
    if order is None:
        return
    os.setsid()
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.path[0] = order["cwd"]
    sys.argv[:] = [llmhost.__main__.__file__, *order["words"]]
    program()


if __name__ == "__main__":
    main()
