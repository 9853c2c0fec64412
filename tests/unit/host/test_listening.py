"""Sockets to listen on, and certificates: what is there already, and what can't be had."""

import logging
import socket
import ssl
from pathlib import Path

import pytest
from certificates import write_certificate

from llmhost.config.schema.server import ServerSettings
from llmhost.core.errors import AlreadyRunning, ConfigError
from llmhost.host.banner import _first_request
from llmhost.host.listening import bound_socket, url_of
from llmhost.host.tls import Certificate, certificate_of


def at(path: Path, mode: str = "600") -> ServerSettings:
    return ServerSettings(unix_socket=str(path), unix_socket_mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["600", "660", "666"])
def test_a_socket_has_the_mode_that_is_asked_for_and_is_gone_afterwards(
    tmp_path: Path, mode: str
) -> None:
    path = tmp_path / "a.sock"

    with bound_socket(at(path, mode)) as listener:
        assert path.stat().st_mode & 0o777 == int(mode, 8)
        assert url_of(listener, is_tls=False) == f"unix:{path}"

    assert not path.exists()


def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    with bound_socket(at(path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_the_socket_of_a_living_server_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with bound_socket(at(path)):
        with pytest.raises(AlreadyRunning, match="listens on"), bound_socket(at(path)):
            pass
        assert path.exists()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")

    with pytest.raises(ConfigError, match="no socket"), bound_socket(at(path)):
        pass

    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["none/a.sock", "x" * 200])
def test_a_path_where_nothing_can_be_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="Can't listen on"), bound_socket(at(tmp_path / name)):
        pass


def test_a_port_is_announced_as_what_is_spoken_there() -> None:
    with bound_socket(ServerSettings(port=0)) as listener:
        port = listener.getsockname()[1]

        assert url_of(listener, is_tls=True) == f"https://127.0.0.1:{port}"


# ------------------------------------------------------------ certificates


def test_without_files_there_is_no_tls() -> None:
    assert certificate_of(ServerSettings()) is None


@pytest.mark.parametrize("text", [None, "", "not PEM"])
def test_files_that_hold_no_certificate_are_said(tmp_path: Path, text: str | None) -> None:
    for name in ("cert.pem", "key.pem"):
        if text is not None:
            (tmp_path / name).write_text(text)
    server = ServerSettings(tls_cert=f"{tmp_path}/cert.pem", tls_key=f"{tmp_path}/key.pem")

    with pytest.raises(ConfigError, match="TLS can't be had"):
        certificate_of(server)


def test_another_certificates_key_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    cert, _ = write_certificate(tmp_path / "a", "a.example")
    _, key = write_certificate(tmp_path / "b", "b.example")

    with pytest.raises(ConfigError, match="TLS can't be had"):
        Certificate(cert, key)


def test_tls_and_a_unix_socket_are_not_had_together(tmp_path: Path) -> None:
    server = ServerSettings(tls_cert="c", tls_key="k", unix_socket=str(tmp_path / "s"))

    with pytest.raises(ConfigError, match="Set one of them"):
        certificate_of(server)


def greeted(certificate: Certificate, trust: Path) -> str:
    """The name of the certificate that a client sees, if it is the one in this file."""
    client = ssl.create_default_context(cafile=trust)
    client.check_hostname = False
    ends = (ssl.MemoryBIO(), ssl.MemoryBIO())
    here = client.wrap_bio(ends[0], ends[1], server_hostname="any.example")
    there = certificate.context.wrap_bio(ends[1], ends[0], server_side=True)
    for _ in range(4):
        for side in (here, there):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return str(dict(each[0] for each in here.getpeercert()["subject"])["commonName"])  # type: ignore[index,misc]


def test_a_renewed_certificate_is_shown_to_the_next_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_certificate(tmp_path, "old.example")
    certificate = Certificate(*files)
    assert greeted(certificate, files[0]) == "old.example"

    with caplog.at_level(logging.INFO, "llmhost"):
        write_certificate(tmp_path, "new.example")
        assert greeted(certificate, files[0]) == "new.example"
        trust = tmp_path / "trust.pem"
        trust.write_bytes(files[0].read_bytes())
        files[0].write_text("half of")
        assert [greeted(certificate, trust) for _ in range(2)] == ["new.example"] * 2

    said = [record.getMessage() for record in caplog.records]
    assert [line.split()[0] for line in said] == ["tls.renewed", "tls.failed"]


def test_the_first_request_to_try_finds_a_socket() -> None:
    shown = _first_request("unix:/run/my node.sock", "tiny", needs_key=False)

    assert "curl -N --unix-socket '/run/my node.sock' http://localhost/v1/chat/" in shown
