"""The process is killed at random instants amid 64 streams, a hundred times on one data dir, and while it starts; and
amid whole answers that repeat word for word, which are let in, settled and told in groups.

What a client saw complete is in the ledger once and exactly. What a kill cut off is there once too, with at least the
tokens that its client was given and at most those that could be made.
"""

import asyncio
import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
from crowd import Told, listen
from server_process import Node

pytestmark = pytest.mark.bars

KILLS = int(os.environ.get("BARS_KILLS", "100"))
SEED = int(os.environ.get("BARS_SEED", "0")) or random.randrange(1, 10**6)
STREAMS = 64
LIFE_S = (0.1, 1.2)
"""A process lives so long under load."""
START_S = (0.2, 2.5)
"""One that is killed while it starts lives so long."""
MOST_TOKENS = 45
INPUT_NANO, OUTPUT_NANO = 1000, 2000

SETTINGS = """
[models.echo]
engine = "fake"
max_batch_size = 128
[models.echo.price]
input = "1.00"
cached_input = "1.00"
output = "2.00"
[models.echo.options]
token_delay_ms = 15
"""

Body = dict[str, Any]


@dataclass
class Heard:
    """What the clients of all lives know."""

    answered: dict[str, tuple[Body, Told]] = field(default_factory=dict)
    cut: dict[str, tuple[Body, Told]] = field(default_factory=dict)
    unnamed: int = 0
    """Cut off before they heard their id."""

    def note(self, body: Body, told: Told) -> None:
        if told.is_done:
            self.answered[told.request_id] = body, told
        elif told.request_id:
            self.cut[told.request_id] = body, told
        else:
            self.unnamed += 1


def body_of(rng: random.Random, voice: int, turn: int) -> Body:
    return {
        "model": "echo",
        "prompt": f"voice {voice} turn {turn}",
        "max_tokens": rng.randrange(1, MOST_TOKENS + 1),
        "n": rng.choice([1, 1, 1, 2]),
        "stream_options": {"include_usage": True},
    }


async def _until_killed(node: Node, key: str, rng: random.Random, heard: Heard) -> None:
    """Keep the streams going; kill the server at a random instant."""
    is_dead = asyncio.Event()

    async def keep_asking(voice: int) -> None:
        turn = 0
        while not is_dead.is_set():
            body = body_of(rng, voice, turn := turn + 1)
            headers = {"authorization": f"Bearer {key}"}
            heard.note(body, await listen(node.port, "/v1/completions", body, headers))

    callers = [asyncio.create_task(keep_asking(voice)) for voice in range(STREAMS)]
    await asyncio.sleep(rng.uniform(*LIFE_S))  # the random instant
    is_dead.set()
    os.kill(node.pid, signal.SIGKILL)
    await asyncio.wait_for(asyncio.gather(*callers), 60)


def _kill_while_it_starts(node: Node, rng: random.Random) -> None:
    node.spawn()
    time.sleep(rng.uniform(*START_S))  # the random instant
    node.kill()


def entries_after(node: Node, seq: int) -> list[dict[str, Any]]:
    """What the ledger has got since, read from the file: the whole of it would be read a hundred times."""
    with closing(sqlite3.connect(f"file:{node.data_dir / 'money.db'}?mode=ro", uri=True)) as money:
        money.row_factory = sqlite3.Row
        rows = money.execute(
            "SELECT seq, request_id, kind, outcome, code, output_tokens, amount_nano,"
            " fresh_input_tokens + cached_input_tokens AS input_tokens"
            " FROM entries WHERE seq > ? AND kind = 'request' ORDER BY seq",
            (seq,),
        )
        return [dict(row) for row in rows]


@dataclass
class Books:
    """The ledger as it grew, and whether it fits what clients heard."""

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    seq: int = 0
    unheard_tokens: list[int] = field(default_factory=list)
    """Of streams that were cut: tokens that were billed and never came."""

    def read(self, node: Node) -> None:
        for entry in entries_after(node, self.seq):
            assert entry["request_id"] not in self.entries, f"doubled: {entry}"
            self.entries[entry["request_id"]] = entry
            self.seq = entry["seq"]

    @property
    def paid_nano(self) -> int:
        return sum(entry["amount_nano"] for entry in self.entries.values())

    def check(self, heard: Heard) -> None:
        lost = heard.answered.keys() - self.entries.keys()
        assert not lost, f"{len(lost)} complete answers are not in the ledger"
        for request_id, (_, told) in heard.answered.items():
            entry, usage = self.entries[request_id], told.usage
            assert entry["outcome"] == "answered", entry
            assert entry["output_tokens"] == usage["completion_tokens"], entry
            assert entry["input_tokens"] == usage["prompt_tokens"], entry
            assert entry["amount_nano"] == self.price(entry), entry
        lost = heard.cut.keys() - self.entries.keys()
        assert not lost, f"{len(lost)} of the streams that were cut are not in the ledger"
        for request_id, (body, told) in heard.cut.items():
            self._check_cut(self.entries[request_id], body, told)

    def _check_cut(self, entry: dict[str, Any], body: Body, told: Told) -> None:
        came = len(told.text.split())
        made, most = entry["output_tokens"], body["max_tokens"] * body["n"]
        assert came <= made <= most, (entry, came, most)
        assert entry["input_tokens"] in (0, len(body["prompt"].split())), entry
        assert entry["amount_nano"] == self.price(entry), entry
        self.unheard_tokens.append(made - came)

    def price(self, entry: dict[str, Any]) -> int:
        return INPUT_NANO * int(entry["input_tokens"]) + OUTPUT_NANO * int(entry["output_tokens"])


def budget_row(node: Node, budget_id: str) -> dict[str, Any]:
    row: dict[str, Any] = node.admin("GET", f"/budgets/{budget_id}").json()
    return row


def nano(dollars: str) -> int:
    whole, _, part = dollars.partition(".")
    return int(whole) * 10**9 + int(part.ljust(9, "0"))


def test_no_kill_loses_doubles_or_leaves_anything(
    new_node: Callable[..., Node], bar: Callable[[str], None]
) -> None:
    node, rng = new_node(SETTINGS).start(), random.Random(SEED)
    key = node.create_key("acme")["key"]
    wish = {"org": "acme", "period": "total", "usd": "1000"}
    budget_id = node.admin("POST", "/budgets", wish).json()["id"]
    heard, books, began = Heard(), Books(), time.monotonic()
    starts = 0

    for life in range(KILLS):
        fresh = Heard()
        asyncio.run(_until_killed(node, key, rng, fresh))
        node.wait()
        if life % 5 == 4:
            _kill_while_it_starts(node, rng)
            starts += 1
        node.start()
        books.read(node)
        books.check(fresh)
        heard.answered |= fresh.answered
        heard.cut |= fresh.cut
        heard.unnamed += fresh.unnamed
        row = budget_row(node, budget_id)
        assert nano(row["held_usd"]) == 0, row
        assert nano(row["spent_usd"]) == books.paid_nano, row

    report = node.verified()
    assert report["ok"], report
    books.check(heard)
    known = heard.answered.keys() | heard.cut.keys()
    strangers = [entry for i, entry in books.entries.items() if i not in known]
    assert len(strangers) <= heard.unnamed
    assert all(entry["output_tokens"] <= 2 * MOST_TOKENS for entry in strangers)
    exported = Counter(
        entry["request_id"] for entry in node.entries() if entry["kind"] == "request"
    )
    assert exported == Counter(list(books.entries))
    tokens = sum(told.usage["completion_tokens"] for _, told in heard.answered.values())
    bar(
        f"{KILLS} kills under {STREAMS} streams and {starts} amid a start, one data dir (BARS_SEED={SEED}):"
        f" {len(heard.answered)} complete answers with {tokens} tokens, 0 lost, 0 doubled, exact;"
        f" {len(heard.cut)} cut, 0 lost, billed at most {max(books.unheard_tokens)} tokens more than came"
        f" (mean {sum(books.unheard_tokens) / len(books.unheard_tokens):.2f}); budgets hold nothing and have spent"
        f" what the ledger says after each start; chain of {report['entries']} whole;"
        f" {time.monotonic() - began:.0f} s"
    )


# ------------------------------------------------------------ whole answers that repeat

REPEAT_KILLS = max(KILLS // 4, 1)
CONNECTIONS = 64
REPEATED: Body = {"model": "echo", "prompt": "the same again", "max_tokens": 3, "temperature": 1}
QUICK = SETTINGS.replace("token_delay_ms = 15", "token_delay_ms = 1")


@dataclass
class Whole:
    """What the clients of one life know."""

    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Usage, by the request's id."""
    cut: int = 0
    """Requests that had been sent, and of whose answers not all came."""


async def _ask_again_and_again(node: Node, request: bytes, heard: Whole) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    try:
        while True:
            writer.write(request)
            heard.cut += 1
            head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines if line)
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            assert " 200 " in first, (first, body)
            heard.cut -= 1
            heard.answers[headers["x-request-id"]] = body["usage"]
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # it was killed
    finally:
        writer.close()


async def _repeat_until_killed(node: Node, key: str, rng: random.Random, heard: Whole) -> None:
    body = json.dumps(REPEATED).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    callers = [
        asyncio.create_task(_ask_again_and_again(node, request, heard)) for _ in range(CONNECTIONS)
    ]
    await asyncio.sleep(rng.uniform(*LIFE_S))  # the random instant
    os.kill(node.pid, signal.SIGKILL)
    await asyncio.wait_for(asyncio.gather(*callers), 60)


def test_no_kill_loses_an_answer_that_repeats_word_for_word(
    new_node: Callable[..., Node], bar: Callable[[str], None]
) -> None:
    node, rng = new_node(QUICK).start(), random.Random(SEED)
    key = node.create_key("acme")["key"]
    wish = {"org": "acme", "period": "total", "usd": "1000"}
    budget_id = node.admin("POST", "/budgets", wish).json()["id"]
    books, answers, cut, began = Books(), 0, 0, time.monotonic()

    for _ in range(REPEAT_KILLS):
        heard, known = Whole(), set(books.entries)
        asyncio.run(_repeat_until_killed(node, key, rng, heard))
        node.wait()
        node.start()
        books.read(node)
        lost = heard.answers.keys() - books.entries.keys()
        assert not lost, f"{len(lost)} answers are not in the ledger"
        for request_id, usage in heard.answers.items():
            entry = books.entries[request_id]
            assert entry["outcome"] == "answered", entry
            assert entry["output_tokens"] == usage["completion_tokens"], entry
            assert entry["input_tokens"] == usage["prompt_tokens"], entry
        others = books.entries.keys() - known - heard.answers.keys()
        assert len(others) <= heard.cut, "somebody pays for what he has not asked for"
        for entry in books.entries.values():
            assert entry["output_tokens"] <= REPEATED["max_tokens"], entry
            assert entry["amount_nano"] == books.price(entry), entry
        row = budget_row(node, budget_id)
        assert nano(row["held_usd"]) == 0, row
        assert nano(row["spent_usd"]) == books.paid_nano, row
        answers, cut = answers + len(heard.answers), cut + heard.cut

    report = node.verified()
    assert report["ok"], report
    bar(
        f"{REPEAT_KILLS} kills under {CONNECTIONS} connections that repeat one request (BARS_SEED={SEED}):"
        f" {answers} answers, each in the ledger once and exact; {cut} cut off, {len(books.entries) - answers} of"
        f" them in the ledger; budgets hold nothing and have spent what it says; chain of {report['entries']} whole;"
        f" {time.monotonic() - began:.0f} s"
    )
