"""A node that is only its HTTP surface, served on loopback, and the program to ask it with."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
import typer.main
import typer.testing
from typer.testing import CliRunner, Result

from llmhost.cli.main import app

# Ninety commands are made from their functions on each call otherwise, a tenth of a second before anything is run.
typer.testing._get_command = cache(typer.main.get_command)

TOKEN = "admin-secret"
KEY = {"id": "k1", "org": "acme", "team": None, "name": None, "requests_per_minute": None}
KEY |= {"models": None, "expires_at": None, "created_at": 1767225600, "revoked_at": None}


@dataclass
class FakeNode:
    """Answers by `METHOD /path`; a callable gets the request and may refuse by returning (status, body)."""

    url: str = ""
    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=lambda: {f"Bearer {TOKEN}"})

    def answer(self, request: dict[str, Any]) -> tuple[int, Any]:
        self.asked.append(request)
        if request["path"].startswith("/admin") and request["token"] not in self.tokens:
            return 401, refusal("The admin token is wrong.")
        known = self.answers.get(f"{request['method']} {request['path']}")
        if known is None:
            return 404, refusal(f"No such route: {request['path']}.")
        given = known(request) if callable(known) else known
        return given if isinstance(given, tuple) else (200, given)


def refusal(message: str) -> dict[str, Any]:
    return {
        "error": {"message": message, "type": "invalid_request_error", "param": None, "code": "x"}
    }


class Door(BaseHTTPRequestHandler):
    node: FakeNode

    def respond(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        status, content = self.node.answer(
            {
                "method": self.command,
                "path": unquote(parts.path),
                "raw_path": parts.path,
                "query": dict(parse_qsl(parts.query)),
                "body": json.loads(body) if body else None,
                "token": self.headers.get("authorization"),
            }
        )
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = respond  # noqa: N815 - as http.server looks them up

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No settings file, no variables, and a data dir of its own."""
    for name in list(os.environ):
        if name.startswith("LLMHOST_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMHOST_SERVER_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").mkdir(mode=0o700)
    return tmp_path


@pytest.fixture
def node(empty_place: Path) -> Iterator[FakeNode]:
    """A running node that `server.json` in the data dir names."""
    fake = FakeNode()
    door = type("ThisDoor", (Door,), {"node": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), door)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    facts = {"url": fake.url, "pid": os.getpid(), "admin_token": TOKEN}
    (empty_place / "data/server.json").write_text(json.dumps(facts))
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


Llmhost = Callable[..., Result]


@pytest.fixture
def llmhost() -> Llmhost:
    """Run `llmhost ARGS`; unexpected exceptions fail the test."""

    def run(*args: str, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(app, list(args), input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for the composition root; tests put in what a command takes from it."""
    module = ModuleType("llmhost.host")
    monkeypatch.setitem(sys.modules, "llmhost.host", module)
    return module
