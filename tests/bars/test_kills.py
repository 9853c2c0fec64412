"""Power is cut in the middle of fifty answers, again and again: what a client saw complete is in the ledger once."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from crowd import Told, listen
from server_process import Node

pytestmark = pytest.mark.bars

ROUNDS = 5
STREAMS = 50

SETTINGS = """
[models.echo]
engine = "fake"
[models.echo.price]
input = "1.00"
output = "2.00"
[models.echo.options]
token_delay_ms = 4
"""


async def _until_killed(node: Node) -> list[Told]:
    """Keep fifty streams going; kill the server while they run."""
    told: list[Told] = []
    ended = asyncio.Event()

    async def keep_asking(i: int) -> None:
        for turn in range(1000):
            body: dict[str, Any] = {
                "model": "echo",
                "prompt": f"voice {i} turn {turn}",
                "max_tokens": 5 + (i * 7 + turn * 3) % 40,
                "stream_options": {"include_usage": True},
            }
            one = await listen(node.port, "/v1/completions", body)
            told.append(one)
            if len(told) >= 4 * STREAMS:
                ended.set()
            if one.broke:
                return

    callers = [asyncio.create_task(keep_asking(i)) for i in range(STREAMS)]
    await asyncio.wait_for(ended.wait(), 60)
    os.kill(node.pid, signal.SIGKILL)
    await asyncio.wait_for(asyncio.gather(*callers), 60)
    return told


def test_no_answer_that_was_seen_complete_is_lost_or_doubled_by_kills(
    new_node: Callable[..., Node], bar: Callable[[str], None]
) -> None:
    node = new_node(SETTINGS)
    done: dict[str, Told] = {}
    broken = 0
    for _ in range(ROUNDS):
        node.start()
        told = asyncio.run(_until_killed(node))
        node.wait()
        done |= {one.request_id: one for one in told if one.is_done}
        broken += sum(one.broke for one in told)
    node.start()

    entries = node.entries()
    counts = Counter(entry["request_id"] for entry in entries)
    by_id = {entry["request_id"]: entry for entry in entries}

    assert len(done) >= ROUNDS * STREAMS
    assert broken >= ROUNDS
    assert max(counts.values()) == 1
    lost = [request_id for request_id in done if request_id not in by_id]
    assert not lost, f"{len(lost)} complete answers are not in the ledger"
    for request_id, one in done.items():
        tokens, usage = by_id[request_id]["tokens"], one.usage
        assert tokens["output"] == usage["completion_tokens"]
        assert tokens["fresh_input"] + tokens["cached_input"] == usage["prompt_tokens"]
        paid = 1000 * usage["prompt_tokens"] + 2000 * usage["completion_tokens"]
        assert by_id[request_id]["amount_nano"] == paid
    report = node.verified()
    assert report["ok"], report
    bar(
        f"{ROUNDS} kills amid {STREAMS} streams: {len(done)} complete answers, 0 lost, 0 doubled,"
        f" {broken} cut; chain of {report['entries']} whole"
    )
