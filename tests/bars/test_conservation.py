"""Minutes of everything at once against a real server: what its devices cost is borne to the nano-dollar.

Chats, streams, vectors and wishes that can't be granted; callers that leave, deadlines, models that fail, budgets of
three tokens at a time of which one runs out, and an operator who loads, unloads, and puts to sleep. Then all that was
told and booked is added up from outside.
"""

import asyncio
import json
import random
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from server_process import Node, eventually

from llmhost.core.units import dollars_to_nano

pytestmark = pytest.mark.bars

DURATION_S = 300.0
CALLERS = 24
ACT_EVERY_S = 3.0
"""The operator does something that often."""

SETTINGS = """
[costs]
cpu_per_hour = "0.777777777"
host_per_hour = "0.123456789"
egress_per_gib = "0.0777"
requests_per_load = 70

[billing]
slice_tokens = 3

[models.tiny]
source = "builtin:tiny"
price = { output = "3.00" }
max_batch_size = 6
kv_memory = "1MB"
[models.tiny.options]
device = "cpu"
threads = 1

[models.guessed]
source = "builtin:tiny"
price = { input = "0.10", output = "2.00" }
load = "request"
[models.guessed.speculation]
method = "draft"
draft = "builtin:tiny-draft"
[models.guessed.options]
device = "cpu"
threads = 1

[models.vectors]
source = "builtin:tiny-embed"
price = { input = "0.05" }
load = "request"
[models.vectors.options]
device = "cpu"
threads = 1

[models.echo]
engine = "fake"
max_queue = 4
max_batch_size = 8
[models.echo.price]
input = "0.30"
output = "1.10"
[models.echo.options]
token_delay_ms = 2.0

[models.quick]
engine = "fake"
price = { output = "1.00" }

[models.frail]
engine = "fake"
price = { output = "1.00" }
[models.frail.options]
fail_after_tokens = 7
token_delay_ms = 1.0
"""
MODELS = ("tiny", "tiny", "guessed", "echo", "echo", "quick", "frail")
SLEEPERS = ("echo", "quick", "frail")
BUDGETS = {"free": None, "rich": "1000", "poor": "0.003"}
"""Dollars that each organisation may spend in all."""


@dataclass
class Mixed:
    """What callers did, and what they were told."""

    node: Node
    keys: list[str]
    luck: random.Random = field(default_factory=lambda: random.Random(4))
    told_nano: dict[str, int] = field(default_factory=dict)
    """By request: what it was told that it had cost."""
    done: Counter[str] = field(default_factory=Counter)
    checks: int = 0
    is_over: bool = False

    async def live(self) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.node.url, timeout=120, limits=limits) as http:
            callers = [asyncio.create_task(self._call(http)) for _ in range(CALLERS)]
            operator = asyncio.create_task(self._operate(http))
            await asyncio.sleep(DURATION_S)
            self.is_over = True
            await asyncio.gather(*callers, operator)

    async def _call(self, http: httpx.AsyncClient) -> None:
        while not self.is_over:
            await self.luck.choice(self._kinds)(self, http)

    async def _whole(self, http: httpx.AsyncClient) -> None:
        luck = self.luck
        more = luck.choice(
            [{}, {"n": 3}, {"temperature": 0}, {"presence_penalty": 0.5}, {"logprobs": True}]
        )
        body = self._chat() | more | {"include_cost": True}
        self._note("whole", await self._ask(http, "/v1/chat/completions", body))

    async def _best(self, http: httpx.AsyncClient) -> None:
        body = {"model": "echo", "prompt": self._text(), "max_tokens": 9, "best_of": 3}
        answer = await self._ask(http, "/v1/completions", body | {"include_cost": True})
        self._note("best_of", answer)

    async def _vectors(self, http: httpx.AsyncClient) -> None:
        texts = [self._text() for _ in range(self.luck.randrange(1, 6))]
        body = {"model": "vectors", "input": texts}
        self._note("vectors", await self._ask(http, "/v1/embeddings", body))

    async def _hurried(self, http: httpx.AsyncClient) -> None:
        body = self._chat() | {"timeout_ms": self.luck.randrange(5, 900), "max_tokens": 400}
        self._note("hurried", await self._ask(http, "/v1/chat/completions", body))

    async def _wrong(self, http: httpx.AsyncClient) -> None:
        body = self._chat() | self.luck.choice([{"model": "nobody"}, {"max_tokens": -1}, {"n": 0}])
        self._note("wrong", await self._ask(http, "/v1/chat/completions", body))

    async def _crowded(self, http: httpx.AsyncClient) -> None:
        """More choices than there is room for: some have begun when the rest is refused."""
        body = {"model": "echo", "prompt": self._text(), "n": 10, "max_tokens": 30}
        self._note("crowded", await self._ask(http, "/v1/completions", body))

    async def _stream(self, http: httpx.AsyncClient) -> None:
        body = self._chat() | {"stream": True, "include_cost": True}
        leaves_after = self.luck.choice([None, None, 0, 1, 5, 20])
        path, headers = "/v1/chat/completions", self._as_somebody()
        async with http.stream("POST", path, json=body, headers=headers) as answer:
            if answer.status_code != 200:
                self.done[f"stream {answer.status_code}"] += 1
                return
            seen, last = 0, ""
            async for line in answer.aiter_lines():
                if '"cost"' in line:
                    last = line.removeprefix("data: ")
                seen += line.startswith("data: ")
                if leaves_after is not None and seen > leaves_after:
                    self.done["stream left"] += 1
                    return
            self.done["stream read"] += 1
            if last:
                self._told(answer, json.loads(last))

    _kinds = (
        _whole,
        _whole,
        _stream,
        _stream,
        _stream,
        _best,
        _vectors,
        _hurried,
        _wrong,
        _crowded,
    )

    async def _operate(self, http: httpx.AsyncClient) -> None:
        headers = {"authorization": f"Bearer {self.node.admin_token}"}
        while not self.is_over:
            await asyncio.sleep(ACT_EVERY_S)
            verb = self.luck.choice(["unload", "load", "sleep", "wake"])
            name = self.luck.choice(SLEEPERS if verb in ("sleep", "wake") else MODELS)
            answer = await http.post(f"/admin/v1/models/{name}/{verb}", headers=headers)
            self.done[f"{verb} {answer.status_code}"] += 1
            devices = await http.get("/admin/v1/costs/devices", headers=headers)
            for row in devices.json()["data"]:
                assert row["error_nano"] == 0, row
                self.checks = max(self.checks, row["checks"])

    async def _ask(
        self, http: httpx.AsyncClient, path: str, body: dict[str, Any]
    ) -> httpx.Response:
        return await http.post(path, json=body, headers=self._as_somebody())

    def _as_somebody(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.luck.choice(self.keys)}"}

    def _chat(self) -> dict[str, Any]:
        return {
            "model": self.luck.choice(MODELS),
            "messages": [{"role": "user", "content": self._text()}],
            "max_tokens": self.luck.choice([1, 5, 12, 40]),
        }

    def _text(self) -> str:
        count = self.luck.choice([1, 8, 8, 90])
        return " ".join(self.luck.choice(["what", "is", "the", "sea", "?"]) for _ in range(count))

    def _note(self, kind: str, answer: httpx.Response) -> None:
        self.done[f"{kind} {answer.status_code}"] += 1
        if answer.status_code == 200 and "cost" in answer.json().get("usage", {}):
            self._told(answer, answer.json())

    def _told(self, answer: httpx.Response, body: dict[str, Any]) -> None:
        cost = body["usage"]["cost"]["total_cost_usd"]
        self.told_nano[answer.headers["x-request-id"]] = dollars_to_nano(cost)


def test_minutes_of_everything_at_once_add_up(
    new_node: Callable[..., Node], bar: Callable[[str], None]
) -> None:
    node = new_node(SETTINGS).spawn()
    node.wait_announced()
    eventually(node.is_ready, "the server did not become ready", within_s=180)
    orgs = {org: node.create_key(org) for org in BUDGETS}
    budgets = {
        org: node.admin("POST", "/budgets", {"org": org, "period": "total", "usd": usd}).json()[
            "id"
        ]
        for org, usd in BUDGETS.items()
        if usd is not None
    }
    mixed = Mixed(node, [made["key"] for made in orgs.values()])
    asyncio.run(mixed.live())
    eventually(
        lambda: all(
            row["running"] + row["waiting"] == 0 for row in node.admin("GET", "/ps").json()["data"]
        ),
        "requests run",
    )
    pools = {p: node.metric("llmhost_cost_nano_total", pool=p) for p in ("host", "egress")}
    rows = {org: node.admin("GET", f"/budgets/{id_}").json() for org, id_ in budgets.items()}
    entries = node.entries()
    assert node.verified()["ok"]
    assert node.stop() == 0
    devices = json.loads(node.cli("usage", "--devices", "--json").stdout)
    booked, loads = _rows(node)

    assert all(row["error_nano"] == 0 for row in devices), devices
    [cpu] = [row for row in devices if row["device"] == "cpu:0"]
    assert cpu["busy_ns"] + cpu["load_ns"] + cpu["idle_ns"] > DURATION_S * 10**9
    requests = [row for row in booked if row["kind"] == "request"]
    callers_nano = sum(row["callers_nano"] for row in devices)
    assert sum(row["gpu_compute_nano"] for row in requests) == callers_nano
    borne: Counter[str] = Counter()
    for row in booked:
        borne[row["load_id"] or ""] += row["model_loading_nano"]
    assert {load: nano for load, nano in borne.items() if load} == loads
    for org, row in rows.items():
        spent_nano = sum(entry["amount_nano"] for entry in entries if entry["org"] == org)
        assert dollars_to_nano(row["spent_usd"]) == spent_nano > 0
        assert dollars_to_nano(row["held_usd"]) == 0
        assert spent_nano <= dollars_to_nano(BUDGETS[org] or "0")
    assert {row["request_id"] for row in requests} <= {entry["request_id"] for entry in entries}
    by_id = {row["request_id"]: row for row in requests}
    for request_id, nano in mixed.told_nano.items():
        assert _total(by_id[request_id]) == nano
    infrastructure = sum(row["infrastructure_nano"] for row in requests)
    assert 0 < infrastructure <= sum(pools.values())
    assert node.log().count(" ERROR ") == node.log().count("step.failed"), "an error in the log"
    spent = ", ".join(f"{row['spent_usd']} of {row['usd']}" for row in rows.values())
    done = ", ".join(f"{count} {what}" for what, count in sorted(mixed.done.items()))
    bar(
        f"{DURATION_S:.0f} s of a mixed load: {len(requests):,} requests, {len(loads)} loads,"
        f" {mixed.checks} checks, {callers_nano:,} nano-dollars of compute borne, 0 off;"
        f" dollars of budgets spent: {spent} ({done})"
    )


def _total(row: dict[str, Any]) -> int:
    pools = "gpu_compute", "infrastructure", "model_loading", "safety_moderation"
    return sum(int(row[f"{pool}_nano"]) for pool in pools)


def _rows(node: Node) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """What requests bore, and what each load cost."""
    uri = f"file:{node.data_dir / 'money.db'}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        costs = [dict(row) for row in connection.execute("SELECT * FROM request_costs")]
        loads = dict(connection.execute("SELECT load_id, cost_nano FROM loads").fetchall())
    return costs, loads
