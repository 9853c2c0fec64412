"""What goes over the wire, byte by byte: framing, headers, heartbeats, CORS, Host."""

import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import Node, chat_body, events, eventually, http_bytes

from llmhost.testing import fake_words

GOLDEN = Path(__file__).parent / "golden"
PAGE = {"origin": "http://localhost:3000"}


def wire_chunks(connection: socket.socket) -> Iterator[bytes]:
    """The response's head, then each chunk of its body as it was written."""
    file = connection.makefile("rb")
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = file.readline()
        assert line, "the connection closed in the head"
        head += line
    yield head
    while size := int(file.readline(), 16):
        yield file.read(size)
        assert file.read(2) == b"\r\n"


def streamed(node: Node, path: str, body: dict[str, Any]) -> tuple[bytes, list[bytes]]:
    with node.raw() as connection:
        connection.sendall(http_bytes(path, {**body, "stream": True}))
        head, *chunks = wire_chunks(connection)
    return head, chunks


# ------------------------------------------------------------ golden streams


def folded(chunks: list[bytes]) -> str:
    """The events of a stream, one a line, with ids and times of no interest, and the pieces of a text joined.

    How many pieces there are is a matter of timing and of nothing else.
    """
    lines: list[str] = []
    for event in b"".join(chunks).decode().removesuffix("\n\n").split("\n\n"):
        event = re.sub(r'"id":"([a-z]+)-[0-9a-f]{24}"', r'"id":"\1-ID"', event)
        event = re.sub(r'"created":\d{10}', '"created":0', event)
        piece = re.fullmatch(r'(.*"(?:content|text)":")([^"]+)(",?.*)', event)
        before = re.fullmatch(r'(.*"(?:content|text)":")([^"]+)(",?.*)', lines[-1] if lines else "")
        if piece and before and (piece[1], piece[3]) == (before[1], before[3]):
            lines[-1] = before[1] + before[2] + piece[2] + piece[3]
        else:
            lines.append(event)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        ("chat", "/v1/chat/completions", chat_body(max_tokens=4)),
        (
            "completion",
            "/v1/completions",
            {"model": "echo", "prompt": "once upon", "max_tokens": 4},
        ),
    ],
)
@pytest.mark.parametrize("with_usage", [False, True], ids=["plain", "usage"])
def test_a_stream_is_the_golden_one(
    open_node: Node, name: str, path: str, body: dict[str, Any], with_usage: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if with_usage else {}

    _, chunks = streamed(open_node, path, {**body, **options})

    golden = GOLDEN / f"{name}{'_usage' if with_usage else ''}.txt"
    assert folded(chunks) == golden.read_text()


# ------------------------------------------------------------ framing


@pytest.mark.parametrize("n", [1, 5])
def test_every_write_of_a_stream_holds_whole_events(open_node: Node, n: int) -> None:
    _, chunks = streamed(
        open_node, "/v1/chat/completions", chat_body(model="slow", max_tokens=6, n=n)
    )

    assert len(chunks) > 3
    for chunk in chunks:
        assert chunk.endswith(b"\n\n")
        for event in chunk.removesuffix(b"\n\n").split(b"\n\n"):
            if event != b"data: [DONE]" and not event.startswith(b": "):
                json.loads(event.removeprefix(b"data: "))
    assert chunks[-1].endswith(b"data: [DONE]\n\n")
    assert b"\r" not in b"".join(chunks)


def test_a_stream_is_announced_as_one_that_nothing_may_hold_up(open_node: Node) -> None:
    response = open_node.post(
        "/v1/chat/completions",
        chat_body(max_tokens=2, stream=True),
        headers={"accept-encoding": "gzip, br, zstd"},
    )

    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in response.headers
    assert "content-length" not in response.headers


def test_a_whole_answer_is_not_compressed_either(open_node: Node) -> None:
    response = open_node.post(
        "/v1/chat/completions",
        chat_body(max_tokens=500),
        headers={"accept-encoding": "gzip, br, zstd"},
    )

    assert "content-encoding" not in response.headers
    assert int(response.headers["content-length"]) == len(response.content)


def test_headers_come_before_the_first_token_and_silence_is_filled(open_node: Node) -> None:
    body = {"model": "silent", "prompt": "x", "max_tokens": 1, "stream": True}
    with open_node.http.stream("POST", f"{open_node.url}/v1/completions", json=body) as response:
        pieces = response.iter_text()
        first = next(pieces)
        rest = "".join(pieces)

    assert response.status_code == 200
    assert first == ": keep-alive\n\n"
    assert rest.endswith("data: [DONE]\n\n")
    assert re.fullmatch(r"(: keep-alive\n\n)*(data: .*\n\n)+", rest)


def test_curl_sees_the_pieces_as_they_come(open_node: Node) -> None:
    done = subprocess.run(
        [
            *("curl", "-sN", "--max-time", "20", f"{open_node.url}/v1/chat/completions"),
            *("-H", "content-type: application/json"),
            *("-d", json.dumps(chat_body(max_tokens=3, stream=True))),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.startswith('data: {"id":"chatcmpl-')
    assert done.stdout.endswith("data: [DONE]\n\n")


def test_a_connection_serves_one_request_after_another(open_node: Node) -> None:
    body = http_bytes("/v1/completions", {"model": "echo", "prompt": "x", "max_tokens": 1})
    bad = http_bytes("/v1/completions", b"{")
    with open_node.raw() as connection:
        connection.sendall(body + bad + body)  # pipelined, too
        file = connection.makefile("rb")
        seen = [_one_response(file) for _ in range(3)]

    assert [status for status, _ in seen] == [200, 400, 200]


def _one_response(file: Any) -> tuple[int, bytes]:
    status = int(file.readline().split()[1])
    length = 0
    while (line := file.readline()) != b"\r\n":
        name, _, value = line.partition(b":")
        length = int(value) if name == b"content-length" else length
    return status, file.read(length)


# ------------------------------------------------------------ ids


Ask = Callable[[Node, dict[str, str]], httpx.Response]

ANSWERS: dict[str, Ask] = {
    "answer": lambda n, h: n.post("/v1/chat/completions", chat_body(max_tokens=1), headers=h),
    "stream": lambda n, h: n.post(
        "/v1/chat/completions", chat_body(max_tokens=1, stream=True), headers=h
    ),
    "bad request": lambda n, h: n.post("/v1/completions", {}, headers=h),
    "bad body": lambda n, h: n.post("/v1/completions", content=b"{", headers=h),
    "models": lambda n, h: n.get("/v1/models", headers=h),
    "health": lambda n, h: n.get("/health", headers=h),
    "ready": lambda n, h: n.get("/ready", headers=h),
    "metrics": lambda n, h: n.get("/metrics", headers=h),
    "unknown route": lambda n, h: n.get("/nothing", headers=h),
    "wrong method": lambda n, h: n.get("/v1/completions", headers=h),
    "admin": lambda n, h: n.get(
        "/admin/v1/ps", headers={**h, "authorization": f"Bearer {n.admin_token}"}
    ),
    "admin without token": lambda n, h: n.get("/admin/v1/ps", headers=h),
    "preflight": lambda n, h: n.http.options(f"{n.url}/v1/models", headers={**h, **PAGE}),
    "foreign host": lambda n, h: n.get("/health", headers={**h, "host": "evil.example"}),
}


@pytest.mark.parametrize("ask", ANSWERS.values(), ids=ANSWERS)
def test_every_response_has_our_id_and_repeats_the_clients(open_node: Node, ask: Ask) -> None:
    plain = ask(open_node, {})
    named = ask(open_node, {"x-request-id": "mine-1"})

    assert re.fullmatch(r"req_[0-9a-f]{24}", plain.headers["x-request-id"])
    assert "x-client-request-id" not in plain.headers
    assert named.headers["x-request-id"] != "mine-1"
    assert named.headers["x-client-request-id"] == "mine-1"
    assert len(named.headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize("id_", ["x" * 129, "two words", "tab\there", ""])
def test_a_clients_id_that_is_not_short_and_plain_is_not_repeated(
    open_node: Node, id_: str
) -> None:
    response = open_node.get("/v1/models", headers={"x-request-id": id_})

    assert response.status_code == 200
    assert "x-client-request-id" not in response.headers


def test_the_id_in_the_header_is_the_one_in_the_answer_and_in_the_ledger(open_node: Node) -> None:
    response = open_node.post(
        "/v1/chat/completions", chat_body(max_tokens=1), headers={"x-request-id": "same"}
    )
    again = open_node.post(
        "/v1/chat/completions", chat_body(max_tokens=1), headers={"x-request-id": "same"}
    )

    ids = [r.headers["x-request-id"] for r in (response, again)]
    assert len(set(ids)) == 2
    for request_id, answer in zip(ids, (response, again), strict=True):
        assert answer.json()["id"].removeprefix("chatcmpl-") == request_id.removeprefix("req_")
        assert open_node.entry(request_id)["outcome"] == "answered"
        assert answer.headers["openai-processing-ms"].isdigit()


# ------------------------------------------------------------ CORS


ALLOWED = [
    "http://localhost:3000",
    "https://localhost",
    "http://127.0.0.1:8000",
    "http://[::1]:5173",
    "https://allowed.example",
]
OTHERS = [
    "https://evil.example",
    "http://localhost.evil.example",
    "http://evil.example:80#localhost",
    "null",
    "http://127.0.0.1.evil.example",
    "https://allowed.example.evil.example",
]


@pytest.mark.parametrize("origin", ALLOWED)
def test_an_allowed_page_may_ask(open_node: Node, origin: str) -> None:
    for stream in (False, True):
        response = open_node.post(
            "/v1/chat/completions",
            chat_body(max_tokens=1, stream=stream),
            headers={"origin": origin},
        )
        assert response.headers["access-control-allow-origin"] == origin
        assert "origin" in response.headers["vary"].lower()
        assert "x-request-id" in response.headers["access-control-expose-headers"]
    refused = open_node.post("/v1/completions", {}, headers={"origin": origin})
    assert refused.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize("origin", OTHERS)
def test_another_page_gets_no_leave(open_node: Node, origin: str) -> None:
    asked = open_node.get("/v1/models", headers={"origin": origin})
    preflight = open_node.http.options(
        f"{open_node.url}/v1/chat/completions",
        headers={"origin": origin, "access-control-request-method": "POST"},
    )

    for response in (asked, preflight):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_a_preflight_allows_what_it_asks_for(open_node: Node) -> None:
    response = open_node.http.options(
        f"{open_node.url}/v1/chat/completions",
        headers={
            **PAGE,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,x-stainless-os",
        },
    )

    assert response.status_code == 204
    assert response.content == b""
    assert response.headers["access-control-allow-origin"] == PAGE["origin"]
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["access-control-allow-headers"] == "authorization,x-stainless-os"


@pytest.mark.parametrize("path", ["/admin/v1/keys", "/metrics", "/admin/openapi", "/health"])
def test_pages_may_not_read_what_is_for_operators(open_node: Node, path: str) -> None:
    headers = {**PAGE, "authorization": f"Bearer {open_node.admin_token}"}

    for response in (
        open_node.get(path, headers=headers),
        open_node.http.options(f"{open_node.url}{path}", headers=headers),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]


# ------------------------------------------------------------ Host


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "0.0.0.0", "", "10.0.0.1"]
)
def test_a_server_on_loopback_does_not_answer_to_other_names(open_node: Node, host: str) -> None:
    for path in ("/v1/models", "/admin/v1/keys", "/health"):
        response = open_node.get(path, headers={"host": host})
        assert response.status_code == 403
        assert response.json()["error"]["type"] == "permission_error"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.8.8.8:80", "[::1]:80"]
)
def test_a_server_on_loopback_answers_to_its_names(open_node: Node, host: str) -> None:
    assert open_node.get("/v1/models", headers={"host": host}).status_code == 200


# ------------------------------------------------------------ slow and half requests


def test_a_body_that_comes_byte_by_byte_is_a_body(open_node: Node) -> None:
    request = http_bytes("/v1/completions", {"model": "echo", "prompt": "x", "max_tokens": 1})
    with open_node.raw() as connection:
        for byte in request:
            connection.send(bytes([byte]))
        status, _ = _one_response(connection.makefile("rb"))

    assert status == 200


def test_a_client_that_leaves_in_its_body_harms_nobody(open_node: Node) -> None:
    request = http_bytes("/v1/completions", {"model": "echo", "prompt": "x", "max_tokens": 1})
    for cut in (10, len(request) - 20, len(request) - 1):
        with open_node.raw() as connection:
            connection.sendall(request[:cut])

    assert open_node.chat(max_tokens=1).status_code == 200


def test_a_reader_that_gets_up_late_gets_everything(open_node: Node) -> None:
    body = chat_body(model="echo", max_tokens=2000, stream=True)
    with open_node.http.stream(
        "POST", f"{open_node.url}/v1/chat/completions", json=body
    ) as response:
        request_id = response.headers["x-request-id"]
        eventually(
            lambda: any(e["request_id"] == request_id for e in _entries_elsewhere(open_node)),
            "the answer waits for its reader",
        )
        got = list(events(response))

    text = "".join(e["choices"][0]["delta"].get("content", "") for e in got if e != "[DONE]")
    assert got[-1] == "[DONE]"
    assert len(text.split()) == 2000


def _entries_elsewhere(node: Node) -> list[dict[str, Any]]:
    with httpx.Client(timeout=60, verify=False) as another:
        headers = {"authorization": f"Bearer {node.admin_token}"}
        text = another.get(f"{node.url}/admin/v1/ledger/export", headers=headers).text
    return [json.loads(line) for line in text.splitlines()]


def test_pipelined_requests_stop_when_their_client_leaves(open_node: Node) -> None:
    body = {"model": "slow", "prompt": "x", "max_tokens": 5000, "stream": True}
    request = http_bytes("/v1/completions", body)
    with open_node.raw() as connection:
        connection.sendall(request + request)
        assert connection.recv(64)
        eventually(lambda: open_node.loaded("slow")["running"], "nothing runs")

    eventually(lambda: open_node.is_idle("slow"), "the first of two requests goes on for nobody")


def test_what_is_not_http_ends_the_connection_and_what_runs_on_it(open_node: Node) -> None:
    body = {"model": "slow", "prompt": "x", "max_tokens": 5000, "stream": True}
    with open_node.raw() as connection:
        connection.sendall(http_bytes("/v1/completions", body))
        assert connection.recv(64)
        connection.sendall(b"\x00\x01 nonsense\r\n\r\n")
        eventually(lambda: open_node.is_idle("slow"), "the request goes on")


@pytest.mark.parametrize(
    "raw",
    [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n"],
)
def test_what_is_not_http_is_refused_in_the_same_form(open_node: Node, raw: bytes) -> None:
    with open_node.raw() as connection:
        connection.sendall(raw)
        response = b"".join(iter(lambda: connection.recv(65536), b""))

    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"x-request-id: req_" in head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_a_head_that_does_not_end_is_cut_off(open_node: Node) -> None:
    sent = 0
    with open_node.raw() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-long: ")
        with pytest.raises(OSError):
            for _ in range(1000):
                connection.sendall(b"y" * 65536)
                sent += 65536

    assert sent < 1000 * 65536
    assert open_node.get("/health").status_code == 200


# ------------------------------------------------------------ readers of every speed


def test_a_reader_that_pauses_costs_nobody_else_and_gets_everything(open_node: Node) -> None:
    body = {"model": "echo", "prompt": "to a slow reader", "max_tokens": 20_000, "stream": True}
    with open_node.raw(receive_buffer=1024) as connection:
        connection.sendall(http_bytes("/v1/completions", body))
        chunks = wire_chunks(connection)
        assert next(chunks).startswith(b"HTTP/1.1 200 ")
        _, beside = streamed(open_node, "/v1/chat/completions", chat_body(max_tokens=50))
        eventually(lambda: open_node.is_idle("echo"), "the model waits for its reader")
        pieces = list(chunks)

    assert beside[-1].endswith(b"data: [DONE]\n\n")
    said = b"".join(pieces).split(b"\n\n")
    assert said[-2:] == [b"data: [DONE]", b""]
    assert said[-3].startswith(b": llmhost cost_usd=0.0400")
    told = [event for event in said[:-3] if event != b": keep-alive"]  # a busy machine is slow
    choices = [json.loads(event[6:])["choices"][0] for event in told]
    assert "".join(choice["text"] for choice in choices) == fake_words("to a slow reader", 20_000)
    assert len(pieces) < 20_000
