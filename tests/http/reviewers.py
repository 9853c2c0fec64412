"""Reviewers who work on one queue at the same time, over HTTP, while the server may be killed."""

import asyncio
import random
import threading
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from server_process import PATIENCE_S, Node, eventually

from llmhost.config.schema.safety import ReviewSettings
from llmhost.core.caller import Caller
from llmhost.host.offline import OfflineAdmin
from llmhost.host.reviews import open_reviews
from llmhost.observe.clock import SystemClock
from llmhost.safety.verdict import (
    Action,
    Decision,
    Direction,
    Finding,
    ReviewMode,
    Screening,
    Tier,
)
from llmhost.storage.node import DataDir

ENDS = ("approved", "rejected")


def prepare(data_dir: Path, *, reviewers: int, texts: int) -> tuple[list[str], list[str]]:
    """Keys of reviewers, and the ids of texts that wait for them, in a data dir that no server runs on."""
    admin = OfflineAdmin(data_dir)
    admin.create_org("acme")
    keys = [admin.create_key(org="acme", role="reviewer")["key"] for _ in range(reviewers)]
    admin.close()
    return keys, asyncio.run(_refer(data_dir, texts))


async def _refer(data_dir: Path, texts: int) -> list[str]:
    async with AsyncExitStack() as closing:
        with DataDir(data_dir) as data:
            queue = open_reviews(data, ReviewSettings(), SystemClock(), closing)
            made = [
                queue.refer(_screening(n), f"text {n}", f"text {n}", ReviewMode.BLOCK)
                for n in range(texts)
            ]
            return [str(one) for one in await asyncio.gather(*made)]


def _screening(number: int) -> Screening:
    finding = Finding("pii", "pii.card", Tier.RULES)
    return Screening(
        at_ns=1,
        request_id=f"req_{number}",
        caller=Caller(key_id="sender", org="acme"),
        model="echo@1",
        direction=Direction.INPUT,
        decision=Decision(Action.REVIEW, "default@1", finding),
        findings=(finding,),
    )


@dataclass
class Crowd:
    """Each reviewer claims what is due first and decides it, until nothing is left."""

    node: Node
    keys: list[str]
    decided: dict[str, list[str]] = field(default_factory=dict)
    """What each review was told to be, by every answer of 200."""
    refused: Counter[int] = field(default_factory=Counter)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def work(self, kill_at: tuple[int, ...] = ()) -> None:
        """Kill the server when so many are decided, and start it again."""
        for count in kill_at:
            threads = self._begin()
            eventually(partial(self._has_decided, count), "nobody decides")
            self.node.kill()
            for thread in threads:
                thread.join()
            self.node.start()
        for thread in self._begin():
            thread.join()

    def _has_decided(self, count: int) -> bool:
        return len(self.decided) >= count

    def _begin(self) -> list[threading.Thread]:
        threads = [
            threading.Thread(target=self._review, args=(number, key))
            for number, key in enumerate(self.keys)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _review(self, number: int, key: str) -> None:
        draw = random.Random(number)
        headers = {"authorization": f"Bearer {key}"}
        base = f"{self.node.url}/admin/v1/reviews"
        with httpx.Client(headers=headers, timeout=PATIENCE_S) as http:
            try:
                while self._one(http, base, draw):
                    pass
            except httpx.HTTPError:
                return  # the server was killed

    def _one(self, http: httpx.Client, base: str, draw: random.Random) -> bool:
        """Decide on one; now and then on somebody else's, too, or without a claim."""
        if draw.random() < 0.3:
            waiting = http.get(base, params={"limit": 20}).json()["data"]
            if waiting:
                self._decide(http, base, draw.choice(waiting)["id"], draw)
        claimed = http.post(f"{base}/claim")
        if claimed.status_code == 404:
            return False
        assert claimed.status_code == 200, claimed.text
        self._decide(http, base, claimed.json()["id"], draw)
        return True

    def _decide(self, http: httpx.Client, base: str, review: str, draw: random.Random) -> None:
        body = {"decision": draw.choice(["approve", "reject"])}
        answer = http.post(f"{base}/{review}/decide", json=body)
        with self._turn:
            if answer.status_code == 200:
                self.decided.setdefault(review, []).append(answer.json()["state"])
            else:
                self.refused[answer.status_code] += 1


def check(crowd: Crowd, ids: list[str]) -> None:
    """Every text was decided once, as whoever decided was told, and none is lost."""
    answer = crowd.node.admin("GET", "/reviews", state="all", limit="1000")
    rows: dict[str, dict[str, Any]] = {row["id"]: row for row in answer.json()["data"]}
    assert sorted(rows) == sorted(ids)
    assert set(crowd.refused) <= {409}
    for review in ids:
        told = crowd.decided.get(review, [])
        assert len(told) <= 1, f"{review} was decided {len(told)} times"
        row = rows[review]
        assert row["state"] in ENDS
        assert told in ([], [row["state"]])  # killed, its answer may not have arrived
        assert len(row["votes"]) == 1
        history = crowd.node.admin("GET", f"/reviews/{review}").json()["history"]
        assert sum(event["event"] in ENDS for event in history) == 1
