"""A real `llmhost serve` process on loopback, and what a test asks of it from the outside."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from warm_start import SERVING, TORCH, Forked, WarmStart

import llmhost

SOURCE = Path(llmhost.__file__).parents[1]
PATIENCE_S = 60.0
"""How long anything may take before a test gives up on it. Nothing is judged by how much sooner it comes."""

T = TypeVar("T")


def eventually(ask: Callable[[], T], why: str, within_s: float = PATIENCE_S) -> T:
    """What `ask` answers once that is true; fails with `why` when it never is."""
    deadline = time.monotonic() + within_s
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"{why} (waited {within_s:.0f} s, last: {answer!r})"
        time.sleep(0.01)
    return answer


def environment(**more: str) -> dict[str, str]:
    """This process's environment without llmhost's own variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLMHOST_")}
    paths = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **more}


class Warm:
    """The processes that the others are forked from, each begun when it is first of use."""

    def __init__(self) -> None:
        self._begun: dict[bool, WarmStart] = {}

    def of(self, has_torch: bool) -> WarmStart:
        if has_torch not in self._begun:
            modules = (*SERVING, *TORCH) if has_torch else SERVING
            self._begun[has_torch] = WarmStart(environment(), modules)
        return self._begun[has_torch]

    def close(self) -> None:
        for each in self._begun.values():
            each.close()


_warm: Warm | None = None


@contextmanager
def warm_starts() -> Iterator[None]:
    """Within it servers and commands are forked from processes that have imported what they will need."""
    global _warm
    _warm = Warm()
    try:
        yield
    finally:
        _warm.close()
        _warm = None


class Node:
    """A server process. Its data dir may outlive it; `start` again serves it anew."""

    def __init__(self, folder: Path, settings: str, *flags: str) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.log_path = folder / "log.txt"
        self.settings_path = folder / "models.toml"
        self.flags = flags
        self.url = ""
        self.admin_token = ""
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self.http = httpx.Client(timeout=PATIENCE_S, verify=False)
        folder.mkdir(parents=True, exist_ok=True)
        self.settings_path.write_text(settings)

    def spawn(self) -> "Node":
        """Start the process and return at once."""
        flags = self.flags if "--port" in self.flags else (*self.flags, "--port", "0")
        command = ["serve", "--models", str(self.settings_path), "--data-dir", str(self.data_dir)]
        with self.log_path.open("ab") as log:
            self.process = begin(
                [*command, *flags], log.fileno(), log.fileno(), self.folder, self._has_torch()
            )
        return self

    def _has_torch(self) -> bool:
        """Whether it will import torch anyway, to load a model. Fake ones have no source, and what asks a hub reads the
        environment when it is imported."""
        settings = self.settings_path.read_text()
        return "source = " in settings and not any(of in settings for of in (".gguf", '"hf:'))

    def start(self) -> "Node":
        """Start the process and wait until it is ready."""
        self.spawn()
        self.wait_announced()
        eventually(self.is_ready, "the server did not become ready")
        return self

    def wait_announced(self) -> None:
        info = eventually(self._announced, "the server wrote no server.json")
        self.url, self.admin_token = info["url"], info["admin_token"]

    def _announced(self) -> dict[str, Any] | None:
        assert self.alive, f"the server ended early:\n{self.log()}"
        try:
            info: dict[str, Any] = json.loads((self.data_dir / "server.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return info if info["pid"] == self.pid else None

    def is_ready(self) -> bool:
        assert self.alive, f"the server ended early:\n{self.log()}"
        return self.http.get(f"{self.url}/ready").status_code == 200

    # ------------------------------------------------------------ the process

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, within_s: float = PATIENCE_S) -> int:
        """The exit status, negative for the signal that killed it."""
        assert self.process is not None
        return self.process.wait(within_s)

    def stop(self) -> int:
        """SIGTERM, and whatever it takes."""
        if self.process is None:
            return 0
        if self.alive:
            self.signal(signal.SIGTERM)
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.wait()

    def kill(self) -> None:
        if self.alive:
            self.signal(signal.SIGKILL)
        self.wait()

    def close(self) -> None:
        try:
            self.stop()
        finally:
            self.http.close()

    # ------------------------------------------------------------ asking it

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(f"{self.url}{path}", **options)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        if body is not None:
            options["json"] = body
        return self.http.post(f"{self.url}{path}", **options)

    def chat(self, text: str = "say something", **body: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", chat_body(text, **body))

    def admin(self, method: str, path: str, body: Any = None, **params: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.admin_token}"}
        return self.http.request(
            method, f"{self.url}/admin/v1{path}", json=body, params=params, headers=headers
        )

    def entries(self) -> list[dict[str, Any]]:
        """The whole ledger."""
        lines = self.admin("GET", "/ledger/export").text.splitlines()
        return [json.loads(line) for line in lines]

    def entry(self, request_id: str) -> dict[str, Any]:
        """The one ledger entry of a request, once it is there."""
        found = eventually(
            lambda: [e for e in self.entries() if e["request_id"] == request_id],
            f"no ledger entry for {request_id}",
        )
        assert len(found) == 1, found
        return found[0]

    def verified(self) -> dict[str, Any]:
        report: dict[str, Any] = self.admin("GET", "/ledger/verify").json()
        return report

    def loaded(self, model: str) -> dict[str, Any]:
        """The row of `ps` for a model that is loaded."""
        rows = self.admin("GET", "/ps").json()["data"]
        return next(row for row in rows if row["model"] == f"{model}@1")

    def is_idle(self, model: str) -> bool:
        """No sequence runs or waits, and no KV block is held."""
        row = self.loaded(model)
        return not (row["running"] or row["waiting"] or row["kv_blocks_used"])

    def state(self, model: str) -> str:
        rows = self.admin("GET", "/models").json()["data"]
        return str(next(row["state"] for row in rows if row["name"] == model))

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a metric whose labels include these."""
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            sample = re.fullmatch(r"([\w:]+)(?:\{(.*)\})? (\S+)", line)
            if sample is None or sample[1] != name:
                continue
            found = dict(re.findall(r'(\w+)="([^"]*)"', sample[2] or ""))
            if labels.items() <= found.items():
                total += float(sample[3])
        return total

    def create_key(self, org: str, **facts: Any) -> dict[str, Any]:
        orgs = [row["name"] for row in self.admin("GET", "/orgs").json()["data"]]
        if org not in orgs:
            self.admin("POST", "/orgs", {"name": org}).raise_for_status()
        answer = self.admin("POST", "/keys", {"org": org, **facts})
        answer.raise_for_status()
        made: dict[str, Any] = answer.json()
        return made

    def cli(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return cli(*words, "--data-dir", str(self.data_dir))

    @contextmanager
    def raw(self, receive_buffer: int | None = None) -> Iterator[socket.socket]:
        """A bare connection."""
        with socket.socket() as connection:
            if receive_buffer is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            connection.settimeout(PATIENCE_S)
            connection.connect(("127.0.0.1", self.port))
            yield connection


def begin(
    words: Sequence[str], out: int, err: int, folder: Path, has_torch: bool = False, **more: str
) -> "subprocess.Popen[bytes] | Forked":
    """`llmhost WORDS` in the folder, in a session of its own, with more in its environment."""
    env = environment(**more)
    is_plain = (
        signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    )  # which a fork would not inherit
    if _warm is not None and is_plain:
        return _warm.of(has_torch).start(words, out=out, err=err, cwd=str(folder), env=env)
    return subprocess.Popen(
        [sys.executable, "-m", "llmhost", *words],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        cwd=folder,
        env=env,
        start_new_session=True,
    )


def cli(*words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line to its end, with more in its environment."""
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        process = begin(words, out.fileno(), err.fileno(), Path.cwd(), **more)
        try:
            status = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, status, out.read(), err.read())


def chat_body(text: str = "say something", **more: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **more}


def http_bytes(
    path: str, body: Any, *, method: str = "POST", headers: Mapping[str, str] | None = None
) -> bytes:
    """A request as it goes over the wire."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"host": "127.0.0.1", "content-type": "application/json"}
    lines |= {"content-length": str(len(raw)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + raw


def events(response: httpx.Response) -> Iterator[Any]:
    """The events of a stream: objects, and the text `[DONE]`."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)
        else:
            assert line == "" or line.startswith(":"), f"not an event: {line!r}"
