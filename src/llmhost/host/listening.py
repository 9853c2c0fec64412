"""The socket that a node listens on: of an address and port, or a path."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil

from llmhost.config.schema.server import ServerSettings
from llmhost.core.errors import AlreadyRunning, ConfigError

BACKLOG = 2048
_PROBE_S = 1.0


@contextlib.contextmanager
def bound_socket(server: ServerSettings) -> Iterator[socket.socket]:
    """A socket that listens. Raises AlreadyRunning naming the process that has the port, or ConfigError.

    It listens before anything is built: two servers that start together can't both have the port, and whoever
    reads `server.json` can connect.
    """
    listening = _on_path if server.unix_socket is not None else _on_port
    with listening(server) as listener:
        listener.setblocking(False)
        yield listener


@contextlib.contextmanager
def _on_port(server: ServerSettings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((server.host, server.port))
            listener.listen(BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AlreadyRunning(
                    f"Port {server.port} on {server.host} is taken by {_who_has(server.port)}."
                    " Stop it, or choose another port with --port (0 takes a free one)."
                ) from None
            raise ConfigError(
                f"Can't listen on {server.host}:{server.port}: {error.strerror}."
            ) from None
        yield listener


@contextlib.contextmanager
def _on_path(server: ServerSettings) -> Iterator[socket.socket]:
    assert server.unix_socket is not None
    path = Path(server.unix_socket).expanduser().absolute()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            _clear(path)
            before = os.umask(0o777 ^ int(server.unix_socket_mode, 8))
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            listener.listen(BACKLOG)
        except OSError as error:
            raise ConfigError(f"Can't listen on {path}: {error.strerror or error}.") from None
        mine = path.stat().st_ino
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == mine:
                    path.unlink()


def _clear(path: Path) -> None:
    """Take away the socket of a server that was killed. Raises AlreadyRunning if one listens, or ConfigError."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is there and no socket. Choose another path with --uds.")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise AlreadyRunning(
        f"A server listens on {path} already. Stop it, or choose another path with --uds."
    )


def _who_has(port: int) -> str:
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            is_holder = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            if is_holder and connection.pid:
                process = psutil.Process(connection.pid)
                return f"process {process.pid} ({' '.join(process.cmdline())[:120]})"
    return "a process that this user may not look at"


def url_of(listener: socket.socket, *, is_tls: bool) -> str:
    """Where programs of this machine find it: `http://host:port`, or `unix:PATH`."""
    if listener.family is socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    scheme = "https" if is_tls else "http"
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
