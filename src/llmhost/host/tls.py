"""TLS with a certificate and a key from files, which may be renewed while the server runs."""

import logging
import ssl
from pathlib import Path

from llmhost.config.schema.server import ServerSettings
from llmhost.core.errors import ConfigError
from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.host")

Stamp = tuple[tuple[int, int, int], ...]


class Certificate:
    """A pair of files. Looked at when a connection begins, which costs two `stat`; one that can't be read changes
    nothing, and is said once."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Raises ConfigError."""
        self.cert = cert
        self._key = key
        try:
            self._stamp = self._look()
            self._newest = self._read()
        except OSError as error:  # ssl's errors are, too
            raise ConfigError(
                f"TLS can't be had from {cert} and {key}: {error.strerror or error}."
                " tls_cert is a certificate and tls_key its key, both PEM, the key without a password."
            ) from None
        self.context = self._newest
        self.context.sni_callback = self._greet

    def _greet(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        self._renew()
        if self._newest is not self.context:
            connection.context = self._newest

    def _renew(self) -> None:
        try:
            stamp = self._look()
        except OSError:  # they are being replaced
            return
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._newest = self._read()
        except OSError as error:
            log_event(log, "tls.failed", level=logging.ERROR, file=self.cert, error=str(error))
        else:
            log_event(log, "tls.renewed", file=self.cert)

    def _look(self) -> Stamp:
        found = (path.stat() for path in (self.cert, self._key))
        return tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in found)

    def _read(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        # Without a password function a locked key would be asked for on the terminal.
        context.load_cert_chain(self.cert, self._key, password=lambda: "")
        return context


def certificate_of(server: ServerSettings) -> Certificate | None:
    """None where the server speaks plain HTTP. Raises ConfigError."""
    if server.tls_cert is None or server.tls_key is None:
        return None
    if server.unix_socket is not None:
        raise ConfigError(
            "[server] has tls_cert and unix_socket: on a socket of this machine nobody listens in. Set one of them."
        )
    cert, key = (Path(path).expanduser().absolute() for path in (server.tls_cert, server.tls_key))
    return Certificate(cert, key)
