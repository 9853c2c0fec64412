"""Servers that answer the same request, each a process on one core, and what they are asked with on another.

The node has everything on that costs something per request: a key with an allow-list, rates and places on key, team,
organisation and model, a budget on the first three, a price, true costs, rules for text, plugins, ledger, analytics and
metrics.
"""

import json
import os
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

sys.path.append(str(Path(__file__).parents[1] / "http"))  # for server_process.py

from server_process import Node, eventually

REPO = Path(__file__).parents[2]
MODEL = "echo"
FAR = 10**9
"""A limit that nobody comes near."""
LIMITS = {
    "requests_per_minute": FAR,
    "input_tokens_per_minute": FAR,
    "output_tokens_per_minute": FAR,
    "max_concurrency": 4096,
    "budget_usd": "1000000",
    "budget_period": "month",
}
SETTINGS = """
[server]
write_share = {write_share}
log_level = "{log_level}"
[safety]
blocked_words = ["examplebadword", "anotherbadword", "two words", "0x0"]
blocked_patterns = ["\\\\b\\\\d{{4}}-\\\\d{{4}}-\\\\d{{4}}-\\\\d{{4}}\\\\b"]
check_output = {check_output}
[plugins]
dir = "{plugins}"
disabled = {disabled}
[costs]
cpu_per_hour = "0.5"
host_per_hour = "0.2"
egress_per_gib = "0.05"
[models.echo]
engine = "fake"
max_queue = 4096
prefix_cache = true
[models.echo.price]
input = "1.5"
output = "6"
[models.echo.limits]
requests_per_minute = 1000000000
input_tokens_per_minute = 1000000000
output_tokens_per_minute = 1000000000
max_concurrency = 4096
[models.echo.options]
token_delay_ms = {token_delay_ms}
"""
USUAL = {
    "write_share": 1,
    "log_level": "info",
    "token_delay_ms": 0,
    "check_output": "true",
    "disabled": "[]",
}
LITELLM = """
model_list:
  - model_name: echo
    litellm_params:
      model: openai/echo
      api_key: none
      mock_response: {answer}
litellm_settings:
  telemetry: false
  set_verbose: false
"""
LITELLM_ENVIRONMENT = {
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
}
"""As quick as it can be: it writes no access log, and identifies nobody."""
LITELLM_START_S = 120.0
TEXT = "Say in a few words what a gateway in front of a language model has to do for each request."


def chat_body(max_tokens: int, *, is_stream: bool = False) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "You are brief and exact."},
        {"role": "user", "content": TEXT},
    ]
    return {
        "model": MODEL,
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": is_stream,
    }


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Processes that are started within run on that core alone."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Contender(ABC):
    """A running server."""

    name: str
    url: str
    """Where it is asked."""
    headers: dict[str, str]
    pid: int

    def cpu_s(self) -> float:
        """CPU time of the process so far, all threads together; exact to a tick of 10 ms."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def thread_s(self) -> dict[str, float]:
        """CPU seconds of each thread: the one of the event loop, and the others in the order of their start."""
        spent: dict[str, float] = {}
        for number, task in enumerate(sorted(Path(f"/proc/{self.pid}/task").iterdir())):
            with suppress(FileNotFoundError):  # it has ended
                used = int((task / "schedstat").read_text().split()[0]) / 1e9
                spent[f"thread {number}" if number else "loop"] = used
        return spent

    def rss_mb(self) -> float:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("no VmRSS")

    def ask(self, body: dict[str, Any]) -> bytes:
        headers = {"content-type": "application/json", **self.headers}
        answer = httpx.post(self.url, json=body, headers=headers, timeout=60)
        answer.raise_for_status()
        return answer.content

    @abstractmethod
    def close(self) -> None: ...


class Gateway(Contender):
    """A node with everything on."""

    name = "llmhost"

    def __init__(self, folder: Path, core: int | None, **settings: Any) -> None:
        known = {**USUAL, **settings}
        text = SETTINGS.format(plugins=REPO / "plugins", **known)
        self._node = Node(folder / "node", text)
        with on_core(core):
            self._node.start()
        self.pid = self._node.pid
        self.url = f"{self._node.url}/v1/chat/completions"
        self.headers = {"authorization": f"Bearer {self._key()}"}

    def fed_tokens(self) -> float:
        """Tokens that the engine was fed so far: those of prompts, and each that it said but for an answer's last."""
        return self._node.metric("llmhost_step_tokens_total")

    def _key(self) -> str:
        for path, body in (
            ("/orgs", {"name": "acme", **LIMITS}),
            ("/teams", {"org": "acme", "name": "search", **LIMITS}),
        ):
            self._node.admin("POST", path, body).raise_for_status()
        made = self._node.create_key("acme", team="search", models=[MODEL], **LIMITS)
        return str(made["key"])

    def close(self) -> None:
        self._node.close()


class Bare(Contender):
    """The litestar handler of `bare_app`."""

    name = "bare handler"

    def __init__(
        self,
        folder: Path,
        core: int | None,
        answer: bytes,
        events: bytes = b"",
        path: str = "",
        step_s: float = 0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "answer.json").write_bytes(answer)
        (folder / "events.txt").write_bytes(events)
        script = Path(__file__).with_name("bare_app.py")
        with on_core(core):
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    script,
                    folder / "answer.json",
                    folder / "events.txt",
                    str(step_s),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdout is not None
        port = int(self._process.stdout.readline())
        self.pid = self._process.pid
        self.url = f"http://127.0.0.1:{port}{path or '/v1/chat/completions'}"
        self.headers = {}

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)


class LiteLlm(Contender):
    """LiteLLM's proxy with its built-in `mock_response`, from a virtual environment of its own."""

    name = "LiteLLM"

    def __init__(self, folder: Path, core: int | None, venv: Path, answer: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.loads(answer)["choices"][0]["message"]["content"]
        config = folder / "litellm.yaml"
        config.write_text(LITELLM.format(answer=json.dumps(text)))
        port = _free_port()
        command = [venv / "bin/litellm", "--config", config, "--host", "127.0.0.1", "--port", port]
        with on_core(core), (folder / "litellm.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*map(str, command), "--num_workers", "1"],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env={**os.environ, **LITELLM_ENVIRONMENT, "PYTHONPATH": ""},
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self.headers = {}
        eventually(self._is_up, f"LiteLLM did not start; see {folder}/litellm.log", LITELLM_START_S)

    def _is_up(self) -> bool:
        assert self._process.poll() is None, "LiteLLM ended early"
        time.sleep(0.5)
        with suppress(httpx.TransportError):
            url = self.url.replace("/v1/chat/completions", "/health/liveliness")
            return httpx.get(url, timeout=5).status_code == 200
        return False

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
