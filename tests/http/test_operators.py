"""Starting and stopping: what an operator sees at the shell."""

import json
import re
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import Node, chat_body, cli, events, eventually

NewNode = Callable[..., Node]

PACED = """
[server]
drain_timeout_s = {drain_s}
[models.echo]
engine = "fake"
[models.slow]
engine = "fake"
[models.slow.options]
token_delay_ms = 20
"""


class Listener(threading.Thread):
    """Reads one stream to whatever end it has."""

    def __init__(self, node: Node, **body: Any) -> None:
        super().__init__()
        self.url = f"{node.url}/v1/completions"
        self.body = {"model": "slow", "prompt": "x", "stream": True, **body}
        self.got: list[Any] = []
        self.begun = threading.Event()
        self.request_id = ""
        self.broke = False
        self.start()
        assert self.begun.wait(30)

    def run(self) -> None:
        try:
            with (
                httpx.Client(timeout=60, verify=False) as client,
                client.stream("POST", self.url, json=self.body) as response,
            ):
                self.request_id = response.headers["x-request-id"]
                for event in events(response):
                    self.got.append(event)
                    self.begun.set()
        except httpx.HTTPError:
            self.broke = True
        finally:
            self.begun.set()

    def words(self) -> int:
        return sum(
            len(e["choices"][0]["text"].split())
            for e in self.got
            if e != "[DONE]" and "choices" in e
        )


# ------------------------------------------------------------ starting


def test_server_json_and_the_log_say_what_they_should_and_no_more(new_node: NewNode) -> None:
    node = new_node().spawn()
    node.wait_announced()

    status = node.get("/health").status_code  # it can be reached as soon as it is announced

    path = node.data_dir / "server.json"
    eventually(node.is_ready, "it does not become ready")
    answer = node.chat("a-secret-word", max_tokens=1)
    node.chat("a-secret-word", n=0)
    assert status == 200
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(node.data_dir.stat().st_mode) == 0o700
    assert json.loads(path.read_text())["pid"] == node.pid
    assert node.stop() == 0
    assert not path.exists()
    lines = [x for x in node.log().splitlines() if answer.headers["x-request-id"] in x]
    assert len(lines) == 1
    assert "request.answered" in lines[0]
    assert "a-secret-word" not in node.log()
    assert node.admin_token not in node.log()


@pytest.mark.parametrize("what", ["port", "data dir"])
def test_a_second_server_names_the_first_and_leaves_it_alone(
    open_node: Node, tmp_path: Path, what: str
) -> None:
    port, data_dir = (
        (str(open_node.port), tmp_path) if what == "port" else ("0", open_node.data_dir)
    )

    done = cli(
        *("serve", "--models", str(open_node.settings_path), "--port", port),
        *("--data-dir", str(data_dir)),
    )

    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert f"process {open_node.pid}" in done.stderr
    assert (f"Port {port}" if what == "port" else str(data_dir)) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert open_node.chat(max_tokens=1).status_code == 200


def test_of_two_servers_that_start_together_on_one_port_one_serves(new_node: NewNode) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    settings = "[models.echo]\nengine = 'fake'\n"
    both = [new_node(settings, "--port", port).spawn() for _ in range(2)]

    eventually(lambda: not all(node.alive for node in both), "both hold the port")

    (loser,) = [node for node in both if not node.alive]
    (winner,) = [node for node in both if node.alive]
    assert loser.wait() == 1
    assert f"Port {port}" in loser.log()
    winner.wait_announced()
    eventually(winner.is_ready, "the other does not serve")


def test_serving_other_machines_without_a_key_is_refused_with_the_cure(
    new_node: NewNode, tmp_path: Path
) -> None:
    settings = tmp_path / "m.toml"
    settings.write_text("[models.echo]\nengine = 'fake'\n")
    data_dir = str(tmp_path / "d")

    done = cli(
        *("serve", "--models", str(settings), "--port", "0", "--host", "0.0.0.0"),
        *("--data-dir", data_dir),
    )

    assert done.returncode == 1
    assert "llmhost keys create" in done.stderr
    assert "Traceback" not in done.stderr
    # and the cure works
    made_org = cli("orgs", "create", "acme", "--data-dir", data_dir)
    made = cli("keys", "create", "--org", "acme", "--json", "--data-dir", data_dir)
    assert (made_org.returncode, made.returncode) == (0, 0), made.stderr
    node = new_node("[models.echo]\nengine = 'fake'\n", "--host", "0.0.0.0")
    node.data_dir = Path(data_dir)
    node.start()
    key = json.loads(made.stdout)["key"]
    assert node.chat(max_tokens=1).status_code == 401
    headers = {"authorization": f"Bearer {key}", "host": "box.example"}
    said = node.post("/v1/chat/completions", chat_body(max_tokens=1), headers=headers)
    assert said.status_code == 200


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ("[models.echo]\nengin = 'fake'\n", "engine"),
        ("[models.a]\nengine='fake'\naliases=['b']\n[models.b]\nengine='fake'\n", "'b'"),
    ],
)
def test_a_mistake_in_the_settings_is_one_sentence(
    new_node: NewNode, settings: str, word: str
) -> None:
    node = new_node(settings).spawn()

    status = node.wait()

    assert status == 1
    assert word in node.log()
    assert "Traceback" not in node.log()


def test_a_server_is_healthy_and_not_ready_while_its_models_load(new_node: NewNode) -> None:
    node = new_node(
        "[models.late]\nengine = 'fake'\n[models.late.options]\nprefill_delay_ms = 700\n"
    ).spawn()
    node.wait_announced()

    ready, health = node.get("/ready"), node.get("/health")

    assert health.status_code == 200
    assert ready.status_code == 503
    assert ready.json()["error"]["code"] == "server_is_overloaded"
    assert "retry-after" in ready.headers
    # a request meanwhile waits for the load
    answer = node.chat(model="late", max_tokens=1)
    assert answer.status_code == 200
    eventually(node.is_ready, "it does not become ready")


def test_a_stop_amid_loading_is_a_clean_one(new_node: NewNode) -> None:
    node = new_node(
        "[models.late]\nengine = 'fake'\n[models.late.options]\nprefill_delay_ms = 700\n"
    ).spawn()
    node.wait_announced()

    node.signal(signal.SIGTERM)

    assert node.wait() == 0
    assert "Traceback" not in node.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_waits_for_no_load(new_node: NewNode, number: int) -> None:
    node = new_node('[models.stuck]\nengine = "stuck"\n')
    plugins = node.data_dir / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "stuck.py").write_text(STUCK)
    node.spawn().wait_announced()
    eventually(lambda: "reads for ever" in node.log(), "it does not load")

    began = time.monotonic()
    node.signal(number)
    status = node.wait()
    took_s = time.monotonic() - began

    assert status == 0
    assert took_s < 10, took_s
    assert "server.stopped" in node.log()
    assert "Traceback" not in node.log()
    assert not (node.data_dir / "server.json").exists()
    assert cli("ledger", "verify", "--data-dir", str(node.data_dir)).returncode == 0


STUCK = """
import time
from concurrent.futures import ThreadPoolExecutor
from llmhost.engines.kinds import FakeKind
from llmhost.hooks.spec import hookimpl

class Stuck(FakeKind):
    name = "stuck"

    def footprint(self, spec, folder):
        return FakeKind()._runner(type(spec)(engine="fake")).facts

    def load(self, spec, folder, predicted):
        print("reads for ever", flush=True)
        ThreadPoolExecutor().submit(time.sleep, 60).result()  # as the hub's client does

@hookimpl
def register_engines(register):
    register(Stuck())
"""


# ------------------------------------------------------------ stopping


def test_an_idle_server_stops_at_once_whoever_is_still_connected(
    new_node: NewNode,
) -> None:
    node = new_node().start()
    with node.raw():
        node.chat(max_tokens=1)  # its connection is kept alive
        began = time.monotonic()
        node.signal(signal.SIGTERM)
        status = node.wait()
        took_s = time.monotonic() - began

    assert status == 0
    assert took_s < 10, (
        took_s
    )  # no drain_timeout (30 s) is waited out; `pytest -m bars` has the figure
    assert "Traceback" not in node.log()


def test_running_streams_finish_before_the_server_ends(new_node: NewNode) -> None:
    node = new_node(PACED.format(drain_s=30)).start()
    listeners = [Listener(node, max_tokens=50 + i) for i in range(5)]

    node.signal(signal.SIGTERM)
    ready = eventually(lambda: _draining(node), "it does not drain")
    health, refused = node.get("/health"), node.chat(max_tokens=1)
    for listener in listeners:
        listener.join(30)

    assert (ready.status_code, health.status_code) == (503, 200)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "server_is_overloaded"
    assert [listener.got[-1] for listener in listeners] == ["[DONE]"] * 5
    assert [listener.words() for listener in listeners] == [50 + i for i in range(5)]
    assert node.wait() == 0
    assert "Traceback" not in node.log()


def _draining(node: Node) -> httpx.Response | None:
    response = node.get("/ready")
    return response if response.status_code == 503 else None


def test_what_outlasts_the_drain_is_cut_told_so_and_not_billed(new_node: NewNode) -> None:
    node = new_node(PACED.format(drain_s=0.3)).start()
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(_long_answer(node)))
    asking.start()
    listener = Listener(node, max_tokens=50_000)
    eventually(lambda: node.loaded("slow")["running"] == 2, "they do not run")

    node.signal(signal.SIGTERM)

    assert node.wait() == 0
    listener.join(30)
    asking.join(30)
    assert not listener.broke
    assert set(listener.got[-1]) == {"error"}
    assert listener.got[-1]["error"]["code"] == "server_is_overloaded"
    assert {e["choices"][0]["finish_reason"] for e in listener.got[:-1]} == {None}
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "server_is_overloaded"
    assert "Traceback" not in node.log()
    ends = [(e["outcome"], e["amount_nano"]) for e in _offline_entries(node)]
    assert ends == [("failed", 0)] * 2
    assert cli("ledger", "verify", "--data-dir", str(node.data_dir)).returncode == 0


def _long_answer(node: Node) -> httpx.Response:
    with httpx.Client(timeout=60, verify=False) as client:
        body = {"model": "slow", "prompt": "x", "max_tokens": 50_000}
        return client.post(f"{node.url}/v1/completions", json=body)


def _offline_entries(node: Node) -> list[dict[str, Any]]:
    done = cli("ledger", "export", "--data-dir", str(node.data_dir))
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_reader_that_never_reads_does_not_hold_up_the_end(new_node: NewNode) -> None:
    node = new_node(PACED.format(drain_s=0.5)).start()
    with node.raw(receive_buffer=1024) as deaf:
        body = json.dumps({"model": "echo", "prompt": "x", "max_tokens": 60_000, "stream": True})
        deaf.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s"
            % (len(body), body.encode())
        )
        assert deaf.recv(64)
        node.signal(signal.SIGTERM)
        status = node.wait()

    assert status == 0


def test_a_reader_that_never_reads_gets_no_second_drain(
    new_node: NewNode,
) -> None:
    node = new_node(PACED.format(drain_s=3)).start()
    with node.raw(receive_buffer=1024) as deaf:
        deaf.sendall(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n" * 1000)
        assert deaf.recv(64)
        listener = Listener(node, max_tokens=50_000)
        began = time.monotonic()
        node.signal(signal.SIGTERM)
        status = node.wait()
        took_s = time.monotonic() - began
    listener.join(30)

    assert status == 0
    assert took_s < 5.9, took_s  # a drain and a second, and two for a busy machine
    assert not listener.broke
    assert "Traceback" not in node.log()
    assert "Cancel" not in node.log()


def test_a_hang_up_drains_and_a_second_one_changes_nothing(new_node: NewNode) -> None:
    node = new_node(PACED.format(drain_s=30)).start()
    listener = Listener(node, max_tokens=50)

    node.signal(signal.SIGHUP)
    eventually(lambda: _draining(node), "it does not drain")
    node.signal(signal.SIGHUP)
    listener.join(30)

    assert listener.got[-1] == "[DONE]"
    assert node.wait() == 0
    assert "server.stopped why=SIGHUP" in node.log()
    assert not (node.data_dir / "server.json").exists()


def test_a_server_that_was_told_to_ignore_hang_ups_goes_on(new_node: NewNode) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        node = new_node().start()
    finally:
        signal.signal(signal.SIGHUP, before)

    node.signal(signal.SIGHUP)

    assert node.chat(max_tokens=1).status_code == 200
    assert "draining" not in node.log()


def test_a_second_interrupt_ends_it_at_once(new_node: NewNode) -> None:
    node = new_node(PACED.format(drain_s=60)).start()
    listener = Listener(node, max_tokens=50_000)
    node.signal(signal.SIGINT)
    eventually(lambda: _draining(node), "it does not drain")

    node.signal(signal.SIGINT)

    assert node.wait() == 130
    listener.join(30)
    assert listener.broke


def test_a_killed_server_leaves_nothing_to_clear_and_forgets_nothing(new_node: NewNode) -> None:
    node = new_node().start()
    made = node.create_key("acme")
    headers = {"authorization": f"Bearer {made['key']}"}
    first = node.post("/v1/chat/completions", chat_body(max_tokens=3), headers=headers)
    node.kill()
    assert cli("ps", "--data-dir", str(node.data_dir)).returncode == 1

    node.start()

    again = node.post("/v1/chat/completions", chat_body(max_tokens=1), headers=headers)
    entries = [node.entry(answer.headers["x-request-id"]) for answer in (first, again)]
    assert [entry["tokens"]["output"] for entry in entries] == [3, 1]
    assert {entry["model"] for entry in entries} == {"echo@1"}
    assert len({entry["node_id"] for entry in entries}) == 1
    assert node.verified()["ok"] is True


def test_a_fake_only_server_never_loads_torch(open_node: Node) -> None:
    open_node.chat(max_tokens=1)

    maps = Path(f"/proc/{open_node.pid}/maps").read_text()

    assert "libtorch" not in maps
    assert not re.search(r"/torch/", maps)
