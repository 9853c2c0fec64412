"""Half a minute of everything that a server should not be sent. It answers, forgets, and goes on."""

import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from crowd import rss_bytes
from server_process import Node, chat_body, eventually, http_bytes

from llmhost.api.wire import ChatBody, CompletionBody
from llmhost.host.connection import HEAD_TIMEOUT_S
from llmhost.testing import fake_chat_words

pytestmark = pytest.mark.bars

ABUSE_S = float(os.environ.get("BARS_ABUSE_S", "30"))
SEED = int(os.environ.get("BARS_SEED", "0")) or random.randrange(1, 10**6)
CALLERS = 8

SETTINGS = """
[limits]
failed_auth_per_minute = 0
[models.echo]
engine = "fake"
max_queue = 64
[models.slow]
engine = "fake"
max_queue = 64
[models.slow.options]
token_delay_ms = 5
[models.narrow]
engine = "fake"
max_sequence_length = 64
"""

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass
class Findings:
    """What came back, over all callers."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    turn: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, status: int | None, what: bytes, answer: bytes) -> None:
        with self.turn:
            self.sent[kind] += 1
            if status is None:
                return
            self.statuses[status] += 1
            if status == 500 or b'"type":"server_error"' in answer:
                self.failures.append(f"{kind}: {what[:600]!r} -> {answer[:400]!r}")


# ------------------------------------------------------------ what is sent


def strange_value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, with a taste for edges."""
    plain: list[Any] = [
        *(
            None,
            True,
            False,
            0,
            -1,
            1,
            2**31,
            2**63,
            -(2**63) - 1,
            10**40,
            0.5,
            -0.0,
            1e308,
            5e-324,
        ),
        *(
            "",
            "x",
            "\x00",
            "\u202e",
            "é" * 50,
            "\U0001f600",
            "a" * 5000,
            "[DONE]",
            "data: x\n\n",
            "1",
        ),
        *(
            "auto",
            "text",
            "none",
            "user",
            "echo",
            "narrow",
            "gpt-4o-mini",
            "../../etc/passwd",
            "%s%n",
        ),
    ]
    kind = rng.random()
    if depth > 3 or kind < 0.7:
        return rng.choice(plain)
    if kind < 0.85:
        return [strange_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = ["type", "text", "role", "content", "name", "", "x", "function", "include_usage", "5"]
    return {rng.choice(keys): strange_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def sound_body(rng: random.Random, path: str) -> dict[str, Any]:
    model = rng.choice(["echo", "narrow", "slow"])
    if path == CHAT:
        return chat_body(model=model, max_tokens=rng.randrange(1, 20))
    return {"model": model, "prompt": "a b c", "max_tokens": rng.randrange(1, 20)}


def twisted_body(rng: random.Random, path: str) -> dict[str, Any]:
    """A sound body with one to three fields that are not."""
    body = sound_body(rng, path)
    shape = ChatBody if path == CHAT else CompletionBody
    for name in rng.sample(shape.__struct_fields__, rng.randrange(1, 4)):
        body[name] = strange_value(rng)
    if path == CHAT and rng.random() < 0.3:
        body["messages"] = [
            {"role": rng.choice(["user", "tool", "assistant"]), "content": strange_value(rng)}
            | {rng.choice(["name", "tool_calls", "tool_call_id", "x"]): strange_value(rng)}
            for _ in range(rng.randrange(1, 4))
        ]
    if body.get("max_tokens") is None and body.get("model") != "narrow":
        body["max_tokens"] = 5
    return body


def broken_json(rng: random.Random) -> bytes:
    whole = json.dumps(sound_body(rng, CHAT)).encode()
    message = b'{"model":"echo","max_tokens":2,"messages":[{"role":"user","content":%s}]}'
    return rng.choice(
        [
            whole[: rng.randrange(len(whole))],
            b"\xef\xbb\xbf" + whole,
            whole.decode().encode("utf-16"),
            b"\x00" * 50,
            message % b'"\\ud800"',
            message % b'"\\udc00\\ud800"',
            message % b'"\xff\xfe\xc0\x80"',
            message % b'"\xed\xa0\x80"',
            message % b'"\\u0000 x"',
            message % b'"x", "content": "y"',
            message % (b"[" * 50_000 + b"]" * 50_000),
            message % (b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
            b'{"model":"echo","prompt":' + b"[" * 1000 + b"]" * 1000 + b"}",
            b'{"model":"echo","temperature":NaN,"messages":[]}',
            b'{"model":"echo","temperature":-Infinity,"messages":[]}',
            b'{"model":"echo","seed":' + b"9" * 10_000 + b',"messages":[]}',
            b'{"model":"echo","top_p":1e99999,"messages":[]}',
            b"[" * 100_000,
            b'"' + b"\\" * 9999,
            b"null",
            rng.randbytes(rng.randrange(1, 3000)),
        ]
    )


def malformed_http(rng: random.Random) -> bytes:
    """Not HTTP, or nearly."""
    body = json.dumps(sound_body(rng, CHAT)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
    return rng.choice(
        [
            rng.randbytes(rng.randrange(1, 2000)),
            b"\r\n" * 200,
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /health\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"CONNECT evil.example:443 HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"GET http://evil.example/health HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"GET //evil.example/ HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"GET /health HTTP/1.1\r\n\r\n",
            b"GET /health HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n",
            b"GET /health HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: eA==\r\n\r\n",
            b"GET /health HTTP/1.1\r\nhost: localhost\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
            b"GET /v1/models/%00%ff%c0%80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"GET /v1/models/\xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"GET /v1/models/..%2f..%2fetc HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"GET /v1/models?%zz=%&&=\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer \xff\xfe\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nhost: \xff\xfe\r\norigin: \xff\xfe\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\norigin: http://localhost\r\nx-request-id: \xe9\r\n\r\n",
            b"OPTIONS /v1/models HTTP/1.1\r\nhost: localhost\r\norigin: http://localhost\r\n"
            b"access-control-request-headers: \xff\x80,a\r\n\r\n",
            b"GET /metrics HTTP/1.1\r\nhost: localhost\r\naccept: \xff;q=x,,/\r\naccept-encoding: *;q=9\r\n\r\n",
            head + b"content-length: -5\r\n\r\n" + body,
            head + b"content-length: 99999999999999999999\r\n\r\n" + body,
            head + b"content-length: 5\r\ncontent-length: 6\r\n\r\n" + body,
            head + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            head + b"transfer-encoding: chunked\r\n\r\n-1\r\nxx\r\n0\r\n\r\n",
            head + b"transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nxx",
            head + b"transfer-encoding: gzip\r\n\r\n" + body,
            head + b"content-encoding: gzip\r\ncontent-length: 3\r\n\r\n\x1f\x8b\x08",
            head + b"content-type: \xff/x; charset=\xfe\r\ncontent-length: 2\r\n\r\n{}",
            head + b"x: y\r\n continued\r\ncontent-length: 2\r\n\r\n{}",
            head + b"na me: y\r\ncontent-length: 2\r\n\r\n{}",
            head + b"x: a\x00b\r\ncontent-length: 2\r\n\r\n{}",
            head + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n{}",
            head + b"expect: miracles\r\ncontent-length: 2\r\n\r\n{}",
            head
            + b"".join(b"x-%d: y\r\n" % i for i in range(5000))
            + b"content-length: 2\r\n\r\n{}",
            (head + b"content-length: %d\r\n\r\n" % len(body) + body) * rng.randrange(2, 9)
            + b"junk",
        ]
    )


def huge(rng: random.Random) -> Iterator[bytes]:
    """A hundred megabytes, piece by piece: of body, of one header, or of many."""
    kind = rng.randrange(4)
    piece = b" " * 2**20
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
    if kind == 0:
        yield head + b"content-length: %d\r\n\r\n" % (100 * 2**20)
    elif kind == 1:
        yield head + b"transfer-encoding: chunked\r\n\r\n"
        piece = b"100000\r\n" + piece + b"\r\n"
    elif kind == 2:
        yield head + b"x-huge: "
        piece = b"y" * 2**20
    else:
        yield head
        piece = b"x-many: y\r\n" * 90_000
    for _ in range(100):
        yield piece


def admin_request(rng: random.Random, token: str) -> bytes:
    method, path = rng.choice(
        [
            *(("POST", "/orgs"), ("POST", "/keys"), ("GET", "/usage"), ("DELETE", "/keys/x%00y")),
            *(("DELETE", "/keys/%ff"), ("POST", "/models/nothing/load"), ("GET", "/ledger/verify")),
            *(
                ("POST", "/models//load"),
                ("POST", "/models/%00/unload"),
                ("GET", "/keys?org=%ff%00"),
            ),
            *(
                ("GET", "/usage?by=%ff"),
                ("GET", "/usage?since=%00"),
                ("GET", "/usage?by=day&by=key"),
            ),
            ("GET", "/usage?since=-9999-01-01"),
        ]
    )
    body: Any = b""
    if path == "/orgs":
        body = (
            {rng.choice(["name", "x"]): strange_value(rng)}
            if rng.random() < 0.8
            else strange_value(rng)
        )
        if isinstance(body, dict) and isinstance(body.get("name"), str):
            body["name"] += "\n"  # no organisation is really made
    elif path == "/keys":
        fields = ["org", "team", "name", "requests_per_minute", "models", "expires_at"]
        body = {name: strange_value(rng) for name in rng.sample(fields, 3)}
    # No "host" of ours: http_bytes sends one.
    return http_bytes(
        f"/admin/v1{path}", body, method=method, headers={"authorization": f"Bearer {token}"}
    )


# ------------------------------------------------------------ how it is sent


class Abuser(threading.Thread):
    """One caller without manners."""

    def __init__(self, node: Node, seed: int, findings: Findings, deadline: float) -> None:
        super().__init__()
        self.node = node
        self.rng = random.Random(seed)
        self.findings = findings
        self.deadline = deadline
        self.trouble: BaseException | None = None

    def run(self) -> None:
        kinds: list[Callable[[], None]] = [
            *(self.twisted, self.twisted, self.twisted, self.broken, self.broken, self.malformed),
            *(
                self.malformed,
                self.leaving,
                self.leaving,
                self.leaving_early,
                self.as_admin,
                self.slowly,
            ),
        ]
        try:
            while time.monotonic() < self.deadline:
                act = self.huge if self.rng.random() < 0.004 else self.rng.choice(kinds)
                act()
        except BaseException as error:
            self.trouble = error
            raise

    def twisted(self) -> None:
        path = self.rng.choice([CHAT, COMPLETIONS])
        self.send("twisted", http_bytes(path, twisted_body(self.rng, path)))

    def broken(self) -> None:
        path = self.rng.choice([CHAT, COMPLETIONS])
        self.send("broken json", http_bytes(path, broken_json(self.rng)))

    def malformed(self) -> None:
        self.send("malformed http", malformed_http(self.rng), patience_s=0.3)

    def as_admin(self) -> None:
        self.send("admin", admin_request(self.rng, self.node.admin_token))

    def leaving(self) -> None:
        """Go at some moment of a stream."""
        body = {**sound_body(self.rng, CHAT), "model": "slow", "max_tokens": 2000, "stream": True}
        body["n"] = self.rng.randrange(1, 5)
        with self.connection() as connection:
            connection.sendall(http_bytes(CHAT, body))
            for _ in range(self.rng.randrange(4)):
                connection.recv(self.rng.choice([1, 100, 4096]))
            if self.rng.random() < 0.3:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.findings.note("leaving", None, b"", b"")

    def leaving_early(self) -> None:
        """Go in the middle of a request."""
        request = http_bytes(CHAT, sound_body(self.rng, CHAT))
        with self.connection() as connection:
            connection.sendall(request[: self.rng.randrange(len(request))])
        self.findings.note("leaving early", None, b"", b"")

    def slowly(self) -> None:
        """A few bytes at a time, and perhaps never the rest."""
        request = http_bytes(CHAT, sound_body(self.rng, CHAT))
        with self.connection() as connection:
            for start in range(0, self.rng.randrange(len(request)), 40):
                connection.sendall(request[start : start + 40])
                time.sleep(0.005)  # the attack itself
        self.findings.note("slowly", None, b"", b"")

    def huge(self) -> None:
        kind, answer = "huge", b""
        with self.connection() as connection:
            try:
                for piece in huge(self.rng):
                    connection.sendall(piece)
            except OSError:
                pass  # it has heard enough
            answer = receive(connection, 1.0)
        self.findings.note(kind, status_of(answer), b"", answer)

    def send(self, kind: str, request: bytes, patience_s: float = 5.0) -> None:
        with self.connection() as connection:
            try:
                connection.sendall(request)
            except OSError:
                return
            answer = receive(connection, patience_s)
        self.findings.note(kind, status_of(answer), request, answer)

    def connection(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.node.port), timeout=20)


def receive(connection: socket.socket, patience_s: float) -> bytes:
    """A whole response, or what there is of it."""
    connection.settimeout(patience_s)
    raw = b""
    try:
        while piece := connection.recv(65536):
            raw += piece
            head, found, body = raw.partition(b"\r\n\r\n")
            if not found:
                continue
            if b"chunked" in head.lower():
                if body.endswith(b"0\r\n\r\n"):
                    break
            elif len(body) >= length_of(head):
                break
    except OSError:
        pass
    return raw


def length_of(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def status_of(answer: bytes) -> int | None:
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else None


def sockets(process: psutil.Process) -> int:
    return len(process.net_connections("all"))


def open_files(process: psutil.Process) -> Counter[str]:
    return Counter(file.path for file in process.open_files())


def test_abuse_is_answered_and_forgotten(
    new_node: Callable[..., Node], bar: Callable[[str], None]
) -> None:
    node = new_node(SETTINGS).start()
    node.chat(max_tokens=1)
    process = psutil.Process(node.pid)
    before_bytes, before_fds = rss_bytes(node.pid), process.num_fds()
    before_sockets = sockets(process)
    findings, deadline = Findings(), time.monotonic() + ABUSE_S
    abusers = [Abuser(node, SEED * 100 + i, findings, deadline) for i in range(CALLERS)]

    for abuser in abusers:
        abuser.start()
    peak_bytes = 0
    while any(abuser.is_alive() for abuser in abusers):
        assert time.monotonic() < deadline + 90, "a caller hangs"
        assert node.alive, node.log()[-2000:]
        peak_bytes = max(peak_bytes, rss_bytes(node.pid))
        abusers[0].join(0.1)

    seed = f"BARS_SEED={SEED}"
    assert not [abuser.trouble for abuser in abusers if abuser.trouble], seed
    assert not findings.failures, "\n".join([seed, *findings.failures[:5]])
    assert "Traceback" not in node.log(), (
        f"{seed}\n{node.log()[node.log().index('Traceback') - 500 :][:3000]}"
    )
    assert node.get("/health").status_code == 200
    assert node.get("/ready").status_code == 200
    said = node.chat("still there?", max_tokens=5).json()["choices"][0]["message"]["content"]
    assert said == fake_chat_words([{"role": "user", "content": "still there?"}], 5)
    for model in ("echo", "slow", "narrow"):
        eventually(lambda m=model: node.is_idle(m), f"{model} still holds something: {seed}")
    eventually(
        lambda: sockets(process) <= before_sockets,
        f"connections are left: {seed}",
        within_s=HEAD_TIMEOUT_S + 15,  # a request whose head never ended may have that long
    )
    # SQLite keeps the file handles of closed connections for the next ones: as many as were open at once, no more.
    assert process.num_fds() <= before_fds + CALLERS + 3, (seed, open_files(process))
    report = node.verified()
    assert report["ok"], report
    after_bytes = rss_bytes(node.pid)
    bar(
        f"{ABUSE_S:.0f} s of abuse ({seed}): {findings.sent.total()} attacks of {len(findings.sent)} kinds,"
        f" answers {dict(sorted(findings.statuses.items()))}, no 500, no traceback, nothing left over;"
        f" memory {before_bytes / 2**20:.0f} -> {after_bytes / 2**20:.0f} MiB"
        f" (peak {peak_bytes / 2**20:.0f}), {report['entries']} entries whole"
    )
    assert after_bytes < before_bytes + 200 * 2**20
    assert peak_bytes < before_bytes + 500 * 2**20
