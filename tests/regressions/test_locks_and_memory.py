"""Counters that deadlocked under many writers, queues without bounds, and what was left of clients that had left."""

import resource
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from server_process import Node, eventually, http_bytes

NewNode = Callable[..., Node]
BODY = {"model": "echo", "prompt": "a b c", "max_tokens": 3}


class Crowd:
    """Threads that act until they are told to stop, and the first thing that went wrong."""

    def __init__(self) -> None:
        self.is_over = threading.Event()
        self.troubles: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def add(self, act: Callable[[httpx.Client], None]) -> None:
        def run() -> None:
            try:
                with httpx.Client(timeout=60, verify=False) as client:
                    while not self.is_over.is_set():
                        act(client)
            except BaseException as trouble:  # noqa: BLE001 - told by the test
                self.troubles.append(trouble)
                self.is_over.set()

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def stop(self) -> None:
        self.is_over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "somebody waits for ever"
        assert not self.troubles, self.troubles


def test_many_writers_neither_lock_each_other_out_nor_lose_a_count(new_node: NewNode) -> None:
    """Requests, changes of keys, reports and checks wrote to the same rows: some hung, some counts were dropped."""
    node = new_node().start()
    keys = [node.create_key("acme", team=f"t{i % 3}") for i in range(6)]
    admin = {"authorization": f"Bearer {node.admin_token}"}
    answered: list[str] = []
    crowd = Crowd()

    def asking(made: dict[str, Any]) -> Callable[[httpx.Client], None]:
        headers = {"authorization": f"Bearer {made['key']}"}

        def act(client: httpx.Client) -> None:
            answer = client.post(f"{node.url}/v1/completions", json=BODY, headers=headers)
            assert answer.status_code == 200, answer.text
            answered.append(answer.headers["x-request-id"])

        return act

    def changing(client: httpx.Client) -> None:
        for made in keys:
            url = f"{node.url}/admin/v1/keys/{made['id']}"
            change = {"requests_per_minute": 10**9}
            assert client.patch(url, json=change, headers=admin).status_code == 200

    def reporting(client: httpx.Client) -> None:
        for path in ("/usage?by=key", "/ledger/verify", "/usage?by=day", "/costs"):
            answer = client.get(f"{node.url}/admin/v1{path}", headers=admin)
            assert answer.status_code == 200, answer.text

    for made in keys:
        crowd.add(asking(made))
    crowd.add(changing)
    crowd.add(reporting)
    eventually(lambda: len(answered) >= 300 or crowd.is_over.is_set(), "it hangs", within_s=60)
    crowd.stop()

    counts = Counter(entry["request_id"] for entry in node.entries())
    (row,) = node.admin("GET", "/usage", by="org").json()["data"]
    assert counts == Counter(answered)
    assert (row["requests"], row["output_tokens"]) == (len(answered), 3 * len(answered))
    assert row["amount_nano"] == sum(entry["amount_nano"] for entry in node.entries())
    assert node.metric("llmhost_requests_total", outcome="answered") == len(answered)
    assert node.verified()["ok"]


def test_a_full_disk_sheds_load_bounds_what_waits_and_loses_no_money(new_node: NewNode) -> None:
    """With its database gone, one version dropped what was owed, and the next queued it until memory was full."""
    node = new_node().start()
    key = {"authorization": f"Bearer {node.create_key('acme')['key']}"}

    def ask() -> httpx.Response:
        return node.post("/v1/completions", BODY, headers=key)

    before = [ask() for _ in range(5)]
    rss_bytes = psutil.Process(node.pid).memory_info().rss
    files = [path for path in node.data_dir.iterdir() if path.suffix in (".db", ".db-wal")]
    written = max(path.stat().st_size for path in node.data_dir.iterdir() if "money" in path.name)
    assert files and written
    no_more = (1024 * 1024, resource.RLIM_INFINITY)
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, no_more)
    filling: list[httpx.Response] = []
    while len(filling) < 3000 and (not filling or filling[-1].status_code == 200):
        filling.append(ask())
    # Not one page more: the node tries again each second, and what fits behind the last entry would let a request in.
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
    refused = [ask() for _ in range(200)]
    grown = psutil.Process(node.pid).memory_info().rss - rss_bytes
    health = node.get("/health").status_code
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, unlimited)
    after = eventually(lambda: (a := ask()).status_code == 200 and a, "it does not recover")

    assert filling[-1].status_code == 503, filling[-1].text
    assert {answer.status_code for answer in refused} == {503}
    assert all("retry-after" in answer.headers for answer in refused)
    assert health == 200
    assert grown < 50 * 2**20
    complete = [a for a in (*before, *filling, after) if a.status_code == 200]
    ids = {answer.headers["x-request-id"] for answer in complete}
    in_time = eventually(
        lambda: ids <= (got := {e["request_id"] for e in node.entries()}) and got, "money is lost"
    )
    assert ids <= in_time
    counts = Counter(entry["request_id"] for entry in node.entries())
    assert max(counts.values()) == 1
    assert node.verified()["ok"]


@pytest.mark.parametrize("count", [40])
def test_nothing_of_a_stream_is_left_when_its_client_is_gone(new_node: NewNode, count: int) -> None:
    """A framework's stream went on when its client had left, and kept its connection and its memory."""
    node = new_node().start()
    key = {"authorization": f"Bearer {node.create_key('acme')['key']}"}
    process = psutil.Process(node.pid)
    body = {"model": "slow", "prompt": "x", "max_tokens": 5000, "stream": True}
    request = http_bytes("/v1/completions", body, headers=key)

    def leave(each: int) -> None:
        with node.raw() as connection:
            connection.sendall(request)
            if each % 2:
                connection.recv(200)

    leave(1)
    eventually(lambda: node.is_idle("slow"), "a sequence goes on")
    sockets, threads = len(process.net_connections("all")), process.num_threads()
    for each in range(count):
        leave(each)

    eventually(lambda: node.is_idle("slow"), "a sequence goes on")
    eventually(lambda: len(process.net_connections("all")) <= sockets, "a connection is left")
    assert process.num_threads() <= threads + 2
    eventually(lambda: len(node.entries()) == count + 1, "not all were metered")
    assert {entry["outcome"] for entry in node.entries()} == {"cancelled"}


def test_reports_are_read_while_requests_are_written(new_node: NewNode, tmp_path: Path) -> None:
    """Reading a long report held up every request behind it."""
    node = new_node().start()
    key = {"authorization": f"Bearer {node.create_key('acme')['key']}"}
    for _ in range(50):
        node.post("/v1/completions", BODY, headers=key)
    url = f"{node.url}/admin/v1/ledger/export"
    admin = {"authorization": f"Bearer {node.admin_token}"}

    with node.http.stream("GET", url, headers=admin) as export:
        lines = export.iter_lines()
        first = next(lines)
        answer = node.post("/v1/completions", BODY, headers=key)
        rest = list(lines)

    assert answer.status_code == 200
    assert len([first, *rest]) >= 50
