"""Power is cut amid requests that have idempotency keys, and all of them are sent again: who saw an answer keeps it."""

import asyncio
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from crowd import Told, listen
from server_process import Node

pytestmark = pytest.mark.bars

ROUNDS = 4
CLIENTS = 40
ANSWERS = 3 * CLIENTS
"""Complete ones in each round, before the kill."""

SETTINGS = """
[models.echo]
engine = "fake"
[models.echo.price]
input = "1.00"
output = "2.00"
[models.echo.options]
token_delay_ms = 4
"""


def original(told: Told) -> str:
    """The request that an answer is of."""
    return "req_" + str(told.events[0]["id"]).removeprefix("cmpl-")


@dataclass
class Voice:
    """One client: it asks under a new key when it has an answer, and under the same one until then."""

    number: int
    turn: int = 0
    seen: dict[str, list[Told]] = field(default_factory=lambda: defaultdict(list))
    """Key -> complete answers."""

    async def ask(self, node: Node, turn: int) -> Told:
        key = f"voice-{self.number}-{turn}"
        body: dict[str, Any] = {
            "model": "echo",
            "prompt": f"voice {self.number} turn {turn}",
            "max_tokens": 5 + (self.number * 7 + turn * 3) % 40,
        }
        told = await listen(node.port, "/v1/completions", body, {"idempotency-key": key})
        if told.is_done:
            self.seen[key].append(told)
        return told

    async def go_on(self, node: Node, count: Callable[[], None]) -> None:
        """Ask, twice at once now and then, until the server is gone."""
        while True:
            twins = 1 + (self.turn % 4 == 0)
            told = await asyncio.gather(*(self.ask(node, self.turn) for _ in range(twins)))
            if any(one.broke for one in told):
                return
            self.turn += 1
            count()


async def _until_killed(node: Node, voices: list[Voice]) -> None:
    answers, enough = 0, asyncio.Event()

    def count() -> None:
        nonlocal answers
        answers += 1
        if answers >= ANSWERS:
            enough.set()

    asking = [asyncio.create_task(voice.go_on(node, count)) for voice in voices]
    await asyncio.wait_for(enough.wait(), 60)
    os.kill(node.pid, signal.SIGKILL)
    await asyncio.wait_for(asyncio.gather(*asking), 60)


async def _all_again(node: Node, voices: list[Voice]) -> None:
    """Every request of every voice once more, the last of each a first time to its end perhaps."""
    for voice in voices:
        await asyncio.gather(*(voice.ask(node, turn) for turn in range(voice.turn + 1)))


def test_an_answer_that_was_seen_whole_is_the_only_one_of_its_key_whatever_is_killed(
    new_node: Callable[..., Node], bar: Callable[[str], None]
) -> None:
    node = new_node(SETTINGS)
    voices = [Voice(number) for number in range(CLIENTS)]
    for _ in range(ROUNDS):
        node.start()
        asyncio.run(_until_killed(node, voices))
        node.wait()
    node.start()
    asyncio.run(_all_again(node, voices))

    entries = node.entries()
    paid = Counter(entry["request_id"] for entry in entries if entry["amount_nano"])
    keys = {key: told for voice in voices for key, told in voice.seen.items()}
    assert len(keys) == sum(voice.turn + 1 for voice in voices)
    assert len(keys) >= ROUNDS * ANSWERS
    for key, told in keys.items():
        assert len({original(one) for one in told}) == 1, f"{key} was answered twice"
        assert len({one.text for one in told}) == 1
    seen = {original(told[0]) for told in keys.values()}
    assert len(seen) == len(keys)
    assert {paid[request_id] for request_id in seen} == {1}
    unseen = sum(entry["outcome"] == "answered" for entry in entries) - len(seen)
    assert 0 <= unseen <= ROUNDS * CLIENTS
    report = node.verified()
    assert report["ok"], report
    asked = sum(map(len, keys.values()))
    bar(
        f"{ROUNDS} kills amid {CLIENTS} clients with keys: {len(keys)} answers seen {asked} times, each billed once;"
        f" {unseen} billed whose end nobody saw"
    )
