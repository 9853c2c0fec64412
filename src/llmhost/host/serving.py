"""The process that serves: its socket, its signals, its end.

SIGTERM, SIGHUP and the first Ctrl-C drain: new requests are refused, running answers go on for `drain_timeout_s`, then
the process exits with 0, whoever still reads and whatever model is still being read. A second signal exits at once.
"""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Iterator
from functools import partial
from typing import NoReturn

import uvicorn
import uvloop

from llmhost.config.environment import keep_kernels, process_environment, read_variables
from llmhost.config.load import LoadedSettings
from llmhost.hooks.registry import Plugins
from llmhost.host.banner import print_ready, print_start
from llmhost.host.connection import connection_with
from llmhost.host.garbage import Garbage
from llmhost.host.listening import BACKLOG, bound_socket, url_of
from llmhost.host.tls import Certificate, certificate_of
from llmhost.host.web_socket import WebSocket
from llmhost.host.wiring import Host
from llmhost.observe.logs import log_event, start_logging
from llmhost.schedule.interpreter import RELAXED_S
from llmhost.storage.node import DataDir

log = logging.getLogger("llmhost.host")

QUIET_NS = 2 * 10**9
"""Nobody has asked for so long, and is likely to be kept waiting by what is done meanwhile."""
EXIT_INTERRUPTED = 130


def serve(loaded: LoadedSettings, *, as_json: bool = False) -> int:
    """Run a node until it is told to stop; the exit status. Raises ConfigError, AlreadyRunning.

    `as_json` prints what a person would read as objects, one a line.
    """
    server = loaded.settings.server
    start_logging(server.log_level, server.log_format)
    sys.setswitchinterval(RELAXED_S)
    environ = process_environment()
    keep_kernels(environ, loaded.data_dir / "kernels")
    trace = read_variables(environ).trace_hooks
    certificate = certificate_of(server)
    plugins = Plugins.load(loaded.settings.plugins, folder=loaded.plugins_dir, trace=trace)
    with (
        DataDir(loaded.data_dir) as data_dir,
        bound_socket(server) as listener,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        host = runner.run(_serve(loaded, data_dir, plugins, listener, certificate, as_json=as_json))
    if host.is_reading:
        _end_now()
    return 0


async def _serve(
    loaded: LoadedSettings,
    data_dir: DataDir,
    plugins: Plugins,
    listener: socket.socket,
    certificate: Certificate | None,
    *,
    as_json: bool,
) -> Host:
    stop = Stop(asyncio.get_running_loop())
    async with Host(loaded.settings, data_dir, plugins=plugins) as host:
        host.app.routes.register()
        server = Server(_uvicorn_config(host, certificate))
        accepting = asyncio.create_task(server.serve(sockets=[listener]))
        url = url_of(listener, is_tls=certificate is not None)
        tls_cert = None if certificate is None else str(certificate.cert)
        data_dir.announce(url=url, admin_token=host.admin_token, tls_cert=tls_cert)
        print_start(url, as_json=as_json)
        _name_aliases(host)
        tending = asyncio.create_task(_garbage(host).tend())
        loading = host.start_loading()
        loading.add_done_callback(partial(_loaded, host, url, as_json))
        await stop.wait()
        drain_s = loaded.settings.server.drain_timeout_s
        deadline = asyncio.get_running_loop().time() + drain_s
        cut = await host.drain(drain_s)
        server.hang_up_at(deadline)
        server.should_exit = True
        await accepting
        tending.cancel()
    log_event(log, "server.stopped", why=stop.reason, cut_requests=cut)
    return host


def _garbage(host: Host) -> Garbage:
    return Garbage(
        lambda: frozenset(name for name, _ in host.deployments.loads()),
        lambda: host.processor.has_been_idle(QUIET_NS),
    )


def _end_now() -> NoReturn:
    """All is closed, and a load is still under way: libraries' own threads would be joined until it ends."""
    logging.shutdown()
    with contextlib.suppress(OSError):  # whoever read them may be gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def _loaded(host: Host, url: str, as_json: bool, loading: "asyncio.Task[None]") -> None:
    if not loading.cancelled() and not host.is_draining:
        print_ready(host, url, as_json=as_json)


LAST_WORDS_S = 0.5
"""How long a connection has at least, after the drain, to take what was written to it."""


class Server(uvicorn.Server):
    """uvicorn without its signal handling, since the host drains first, and with an end for readers that don't read."""

    _patience_s = LAST_WORDS_S

    def hang_up_at(self, deadline: float) -> None:
        """End what connections are left at that time of the loop, so that a drain has one duration."""
        self._patience_s = max(LAST_WORDS_S, deadline - asyncio.get_running_loop().time())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn's own timeout cancels tasks with a traceback: it is for those that a hang-up did not end.
        self.config.timeout_graceful_shutdown = math.ceil(self._patience_s + LAST_WORDS_S)
        alarm = asyncio.get_running_loop().call_later(self._patience_s, self._hang_up)
        try:
            await super().shutdown(sockets)
        finally:
            alarm.cancel()

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Stop:
    """The wish to stop: the first signal sets it, the second ends the process without ceremony.

    A hang-up is never the second one: terminals and service managers send it beside another, or twice.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reason = ""
        self._asked = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
            loop.add_signal_handler(signal.SIGHUP, self._signalled, signal.SIGHUP)

    async def wait(self) -> None:
        await self._asked.wait()

    def _signalled(self, number: signal.Signals) -> None:
        if self._asked.is_set():
            if number is signal.SIGHUP:
                return
            os._exit(EXIT_INTERRUPTED)
        self.reason = number.name
        log_event(log, "server.draining", why=number.name)
        self._asked.set()


def _uvicorn_config(host: Host, certificate: Certificate | None) -> uvicorn.Config:
    return uvicorn.Config(
        host.app.asgi,
        http=connection_with(host.repeats),
        ws=WebSocket,
        ws_max_size=host.settings.server.max_body_bytes,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whom to believe is [limits] trusted_proxies' to say, and api.peers' to read
        backlog=BACKLOG,
        timeout_keep_alive=host.settings.server.keep_alive_s,
        ssl_context_factory=None if certificate is None else lambda *_: certificate.context,
    )


def _name_aliases(host: Host) -> None:
    """A model that answers to another's name says so: nobody shall take it for the other."""
    for deployment in host.deployments.all():
        for alias in deployment.entry.spec.aliases:
            log_event(log, "model.alias", alias=alias, answered_by=str(deployment.entry.ref))
