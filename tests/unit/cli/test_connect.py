"""Addresses of nodes: URLs, and paths of unix sockets."""

import ssl
from pathlib import Path

import pytest

from llmhost.cli.connect import reach
from llmhost.cli.node import NoNode, answers, base_url, socket_path


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("unix:/run/llmhost.sock", "unix:/run/llmhost.sock"),
        ("unix:///run/llmhost.sock", "unix:/run/llmhost.sock"),
        ("https://models.example/llm/v1/", "https://models.example/llm"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
    ],
)
def test_an_address_has_one_form(given: str, address: str) -> None:
    assert base_url(given) == address


def test_a_relative_path_of_a_socket_counts_from_here() -> None:
    assert base_url("unix:my.sock") == f"unix:{Path.cwd() / 'my.sock'}"


def test_only_a_socket_has_a_path() -> None:
    assert socket_path("unix:/a") == "/a"
    assert socket_path("http://localhost") is None


def test_nobody_answers_on_a_socket_that_is_not_there(tmp_path: Path) -> None:
    assert not answers(f"unix:{tmp_path / 'none.sock'}")


def test_a_socket_is_asked_as_localhost_by_no_proxy() -> None:
    found = reach("unix:/run/llmhost.sock")

    assert (found.url, found.uds) == ("http://localhost", "/run/llmhost.sock")
    assert not found.trust_env


def test_plain_http_reads_no_certificates_and_https_checks_them() -> None:
    assert reach("http://10.0.0.1").verify is False
    assert reach("https://10.0.0.1").verify is True


def test_a_certificate_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoNode, match="certificate, can't be read"):
        reach("https://127.0.0.1:1", str(tmp_path / "cert.pem"))


def test_with_a_nodes_own_certificate_its_name_does_not_matter(tmp_path: Path) -> None:
    from certificates import write_certificate

    found = reach("https://127.0.0.1:1", str(write_certificate(tmp_path, "models.example")[0]))

    assert isinstance(found.verify, ssl.SSLContext)
    assert (found.verify.verify_mode, found.verify.check_hostname) == (ssl.CERT_REQUIRED, False)
