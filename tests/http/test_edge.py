"""The HTTP edge of a real process, mostly by bare sockets: heads, order, probes, TLS, a unix socket, proxies."""

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from certificates import write_certificate
from openai import OpenAI
from server_process import Node, chat_body, eventually, http_bytes

ECHO = """
[models.echo]
engine = "fake"
[models.slow]
engine = "fake"
[models.slow.options]
token_delay_ms = 5
"""
PROXIED = '[server]\nroot_path = "/llm"\n[limits]\ntrusted_proxies = ["127.0.0.1"]\n' + ECHO
ONE = {"model": "echo", "prompt": "x", "max_tokens": 1}
Headers = dict[str, str]


@pytest.fixture(scope="module")
def uds_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Serves on a unix socket alone; no key exists."""
    folder = tmp_path_factory.mktemp("uds")
    node = Node(folder, ECHO, "--port", "0", "--uds", str(folder / "a.sock"))
    node.http = httpx.Client(transport=httpx.HTTPTransport(uds=str(folder / "a.sock")))
    node.spawn().wait_announced()
    assert node.url == f"unix:{folder / 'a.sock'}"
    node.url = "http://localhost"
    eventually(node.is_ready, "the server did not become ready")
    yield node
    node.close()


@pytest.fixture(scope="module")
def tls_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Speaks TLS, below a path, and trusts a proxy on loopback; no key exists."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = write_certificate(folder, "models.example")
    node = Node(folder, PROXIED, "--tls-cert", str(cert), "--tls-key", str(key))
    yield node.start()
    node.close()


def raw(node: Node, *parts: bytes) -> bytes:
    """All that the server says before it closes."""
    with node.raw() as connection:
        for part in parts:
            connection.sendall(part)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def get(path: str, **headers: str) -> bytes:
    lines = {"host": "localhost", "connection": "close", **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"GET {path} HTTP/1.1\r\n{head}\r\n".encode()


def status(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


def error(response: bytes) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(response.partition(b"\r\n\r\n")[2])
    return dict(body["error"])


# ------------------------------------------------------------ heads and paths


def test_a_head_with_too_many_headers_is_431(open_node: Node) -> None:
    many = {f"x-{i}": "v" for i in range(300)}

    response = raw(open_node, get("/health", **many))

    assert status(response) == 431
    assert error(response)["code"] == "headers_too_large"
    assert b"x-request-id: req_" in response


def test_a_head_that_is_too_large_is_431(open_node: Node) -> None:
    response = raw(open_node, get("/health", x_long="y" * 140_000)[:-4])

    assert (status(response), error(response)["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize("second", ["localhost", "elsewhere.example"])
def test_a_head_with_two_hosts_is_400(open_node: Node, second: str) -> None:
    response = raw(open_node, get("/health", Host=second))

    assert status(response) == 400
    assert "more than one 'Host'" in error(response)["message"]
    assert b"connection: close" in response


def test_as_many_headers_as_clients_and_proxies_send_are_fine(open_node: Node) -> None:
    many = {f"x-{i}": "v" * 100 for i in range(200)}

    assert status(raw(open_node, get("/health", **many))) == 200


@pytest.mark.parametrize("path", ["//v1/models", "/v1//models", "/v1/models/", "///v1/models"])
def test_slashes_that_are_too_many_change_nothing(open_node: Node, path: str) -> None:
    assert status(raw(open_node, get(path))) == 200


@pytest.mark.parametrize("target", [b"*", b"http://localhost/v1/models", b"/%ff", b"/\xff", b"v1"])
def test_strange_targets_are_answered_and_harm_nobody(open_node: Node, target: bytes) -> None:
    request = b"GET %b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n" % target

    assert status(raw(open_node, request)) in (200, 400, 404)
    assert open_node.get("/health").status_code == 200


def test_who_wants_a_tunnel_is_refused_in_words_also_behind_another_request(
    open_node: Node,
) -> None:
    tunnel = b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n"
    before = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with open_node.raw() as connection:
        connection.sendall(before)
        told = b""
        while not told.endswith(b"}"):
            told += connection.recv(4096)
        assert status(told) == 200
        connection.sendall(tunnel)
        assert status(connection.recv(4096)) == 400

    assert error(raw(open_node, tunnel))["type"] == "invalid_request_error"
    assert "Traceback" not in open_node.log()


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
def test_a_query_that_can_not_be_read_is_refused_by_its_name(open_node: Node, path: str) -> None:
    found = error(raw(open_node, get(f"{path}?limit=x")))

    assert (found["param"], found["code"]) == ("limit", "invalid_value")
    assert found["message"] == "limit: Expected 'int', got 'str'"


def test_an_older_client_gets_a_whole_answer_and_the_end_of_its_connection(open_node: Node) -> None:
    body = json.dumps(ONE).encode()
    head = b"POST /v1/completions HTTP/1.0\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"

    response = raw(open_node, head % len(body) + body)

    assert status(response) == 200
    assert json.loads(response.partition(b"\r\n\r\n")[2])["object"] == "text_completion"


def test_whoever_waits_to_be_told_so_sends_a_body(open_node: Node) -> None:
    body = json.dumps(ONE).encode()
    head = http_bytes("/v1/completions", body, headers={"expect": "100-continue"})[: -len(body)]
    with open_node.raw() as connection:
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/tokenize"])
def test_a_body_that_says_it_is_too_large_is_not_waited_for(open_node: Node, path: str) -> None:
    head = http_bytes(path, b"", headers={"expect": "100-continue", "content-length": "99999999"})
    with open_node.raw() as connection:
        connection.sendall(head)
        told = b""
        while not told.endswith(b"}"):
            told += connection.recv(4096)

    assert status(told) == 413
    assert told.startswith(b"HTTP/1.1 413"), "it was not told to go on"


@pytest.mark.parametrize("name", ["Upgrade", "upgrade"])
def test_a_client_that_offers_http_2_is_answered_with_its_body_read(
    open_node: Node, name: str
) -> None:
    """Java's own client does so on every first request."""
    offer = {"connection": "Upgrade, HTTP2-Settings, close", name: "h2c", "http2-settings": "AAMA"}

    response = raw(open_node, http_bytes("/v1/completions", ONE, headers=offer))

    assert status(response) == 200
    assert b'"object":"text_completion"' in response


# ------------------------------------------------------------ probes


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/metrics", "/v1/models", "/schema"])
def test_head_says_what_get_says_without_the_body(open_node: Node, path: str) -> None:
    got, head = open_node.get(path), open_node.http.head(f"{open_node.url}{path}")

    assert head.status_code == got.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    assert head.headers["x-request-id"] != got.headers["x-request-id"]


def test_after_a_head_the_connection_goes_on(open_node: Node) -> None:
    head = b"HEAD /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"

    responses = raw(open_node, head + get("/health"))

    assert responses.count(b"HTTP/1.1 200 OK") == 2
    assert responses.endswith(b'{"status":"ok"}')


def test_a_key_is_found_wrong_by_a_probe_of_the_models(keyed_node: Node) -> None:
    for method in ("GET", "HEAD"):
        url = f"{keyed_node.url}/v1/models"
        answer = keyed_node.http.request(method, url, headers={"authorization": "Bearer no"})
        assert answer.status_code == 401


@pytest.mark.parametrize("name", ["Authorization", "x-api-key"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/admin/v1/keys"])
def test_two_keys_are_refused_whichever_of_them_is_valid(
    keyed_node: Node, path: str, name: str
) -> None:
    key = keyed_node.create_key("twice")["key"]
    kind = "Bearer " if name == "Authorization" else ""
    one, two = ((name, f"{kind}{each}") for each in (key, "lh-sk-other"))

    for headers in ([one, two], [two, one], [one, one]):
        answer = keyed_node.get(path, headers=headers)
        assert answer.status_code == 400
        assert (error := answer.json()["error"])["param"] == name
        assert "more than once" in error["message"]


def test_a_client_whose_base_url_lacks_its_v1_is_told_so(open_node: Node) -> None:
    answer = open_node.post("/chat/completions", chat_body())

    assert answer.status_code == 404
    assert "/v1/chat/completions" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("DELETE", "/v1/models", "GET, OPTIONS"),
        ("PUT", "/v1/embeddings", "POST"),
        ("PUT", "/v1/chat/completions", "GET, OPTIONS, POST"),
        ("DELETE", "/v1/chat/completions", "GET, OPTIONS, POST"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    open_node: Node, method: str, path: str, allowed: str
) -> None:
    answer = open_node.http.request(method, f"{open_node.url}{path}")

    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


PROBES = {
    "unknown": ("GET", "/nothing"),
    "admin": ("GET", "/admin/v1/orgs"),
    "wrong method": ("DELETE", "/v1/models"),
    "preflight": ("OPTIONS", "/v1/models"),
    "head": ("HEAD", "/health"),
    "pooling": ("POST", "/v1/embeddings"),
    "answer": ("POST", "/v1/chat/completions"),
    "host": ("GET", "/"),
}


@pytest.mark.parametrize(("method", "path"), PROBES.values(), ids=PROBES)
def test_every_answer_says_how_long_it_took(open_node: Node, method: str, path: str) -> None:
    answer = open_node.http.request(method, f"{open_node.url}{path}")

    assert answer.headers["openai-processing-ms"].isdecimal()


def test_a_preflight_from_a_public_page_may_reach_a_private_address(open_node: Node) -> None:
    asked = {
        "origin": "https://allowed.example",
        "access-control-request-method": "POST",
        "access-control-request-private-network": "true",
    }

    answer = open_node.http.options(f"{open_node.url}/v1/chat/completions", headers=asked)

    assert answer.status_code == 204
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert answer.headers["access-control-allow-origin"] == "https://allowed.example"


# ------------------------------------------------------------ order


def test_requests_that_are_sent_ahead_are_answered_in_order_with_a_stream_between(
    open_node: Node,
) -> None:
    stream = {"model": "slow", "prompt": "x", "max_tokens": 5, "stream": True}

    responses = raw(
        open_node,
        http_bytes("/v1/completions", {**ONE, "user": "first"}),
        http_bytes("/v1/completions", stream) + http_bytes("/v1/completions", b"{"),
        http_bytes("/v1/completions", ONE, headers={"connection": "close"}),
    )

    places = [
        responses.index(mark)
        for mark in (b"text_completion", b"text/event-stream", b"data: [DONE]", b"not valid JSON")
    ]
    assert places == sorted(places)
    assert responses.count(b"HTTP/1.1 200 OK") == 3
    assert responses.index(b"not valid JSON") < responses.rindex(b"HTTP/1.1 200 OK")


def test_an_empty_line_keeps_no_connection_from_its_end(open_node: Node) -> None:
    with open_node.raw() as connection:
        connection.sendall(http_bytes("/v1/completions", ONE))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
        connection.sendall(b"\r\n")
        connection.sendall(get("/health"))
        assert b'{"status":"ok"}' in b"".join(iter(lambda: connection.recv(65536), b""))


# ------------------------------------------------------------ unix socket


def test_a_unix_socket_serves_programs_of_this_machine(uds_node: Node) -> None:
    client = OpenAI(base_url="http://localhost/v1", api_key="none", http_client=uds_node.http)

    answer = client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "hi"}], max_tokens=2
    )

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_a_unix_socket_is_its_users_own(uds_node: Node) -> None:
    assert (uds_node.folder / "a.sock").stat().st_mode & 0o777 == 0o600


def test_commands_find_a_node_by_its_socket(uds_node: Node) -> None:
    by_folder = uds_node.cli("ps", "--json")
    by_url = uds_node.cli("models", "--json", "--url", f"unix:{uds_node.folder / 'a.sock'}")

    assert by_folder.returncode == 0, by_folder.stderr
    assert "echo@1" in by_folder.stdout
    assert by_url.returncode == 0, by_url.stderr


@pytest.mark.parametrize("name", ["x-forwarded-for", "x-real-ip", "forwarded", "via"])
def test_a_stranger_that_a_proxy_brings_is_not_local(uds_node: Node, name: str) -> None:
    brought = {name: "for=203.0.113.9" if name == "forwarded" else "203.0.113.9"}

    answer = uds_node.post("/v1/chat/completions", chat_body(max_tokens=1), headers=brought)

    assert answer.status_code == 401
    assert "by a proxy" in answer.json()["error"]["message"]


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "https://evil.example"}])
def test_a_unix_socket_answers_to_names_and_pages_of_this_machine(
    uds_node: Node, headers: Headers
) -> None:
    assert uds_node.get("/v1/models", headers=headers).status_code == 403


# ------------------------------------------------------------ TLS, and a proxy that is trusted


@contextmanager
def tls(node: Node, version: ssl.TLSVersion | None = None) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=node.folder / "cert.pem")
    if version is not None:
        context.minimum_version = context.maximum_version = version
    with (
        node.raw() as plain,
        context.wrap_socket(plain, server_hostname="models.example") as secure,
    ):
        yield secure


def test_a_node_speaks_tls_with_the_certificate_of_its_files(tls_node: Node) -> None:
    assert tls_node.url.startswith("https://127.0.0.1:")
    with tls(tls_node) as connection:
        connection.sendall(get("/health"))
        assert b"200 OK" in connection.recv(65536)


def test_plain_http_gets_nothing_where_tls_is_spoken(tls_node: Node) -> None:
    with tls_node.raw() as connection:
        connection.sendall(get("/health"))
        assert b"HTTP" not in _until_closed(connection)
    assert tls_node.get("/health").status_code == 200


def _until_closed(connection: socket.socket) -> bytes:
    try:
        return b"".join(iter(lambda: connection.recv(65536), b""))
    except ConnectionResetError:
        return b""


def test_a_renewed_certificate_is_used_at_once_and_a_broken_one_is_not(tls_node: Node) -> None:
    with tls(tls_node) as kept:
        write_certificate(tls_node.folder, "models.example")
        with tls(tls_node) as renewed:
            renewed.sendall(get("/health"))
            assert b"200 OK" in renewed.recv(65536)
        good = (tls_node.folder / "cert.pem").read_bytes()
        (tls_node.folder / "cert.pem").write_text("nothing")
        assert tls_node.http.get(f"{tls_node.url}/health").status_code == 200
        (tls_node.folder / "cert.pem").write_bytes(good)
        kept.sendall(get("/health"))
        assert b"200 OK" in kept.recv(65536)
    assert "tls.renewed" in tls_node.log()


def test_commands_know_the_certificate_of_their_own_node(tls_node: Node) -> None:
    done = tls_node.cli("ps", "--json")

    assert done.returncode == 0, done.stderr
    assert "echo@1" in done.stdout


@pytest.mark.parametrize("root", ["", "/llm"])
def test_paths_may_begin_with_the_root_path(tls_node: Node, root: str) -> None:
    for path in ("/v1/models", "/v1/models/echo", "/health", "/"):
        assert tls_node.get(f"{root}{path}").status_code == (200 if "v1" not in path else 401)
    assert tls_node.get("/llmish/health").status_code == 404


SENT: list[Headers] = [
    {},
    {"x-forwarded-for": "203.0.113.9"},
    {"x-forwarded-for": "127.0.0.1"},
    {"x-forwarded-for": "203.0.113.9, 127.0.0.1"},
    {"x-real-ip": "127.0.0.1"},
]


@pytest.mark.parametrize("headers", SENT)
def test_what_comes_by_a_trusted_proxy_needs_a_key_whatever_it_says(
    tls_node: Node, headers: Headers
) -> None:
    answer = tls_node.post("/v1/chat/completions", chat_body(max_tokens=1), headers=headers)

    assert answer.status_code == 401


def test_a_trusted_proxy_may_be_asked_by_any_name_and_for_any_page_with_a_key(
    tls_node: Node,
) -> None:
    headers = {"host": "models.example", "origin": "https://evil.example"}
    assert tls_node.get("/v1/models", headers=headers).status_code == 401
    key = tls_node.create_key("behind")["key"]

    answer = tls_node.get("/v1/models", headers={**headers, "authorization": f"Bearer {key}"})

    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
