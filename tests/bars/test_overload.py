"""A node that refuses says how long to wait, and means it: who comes back when told is let in."""

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import pytest
from server_process import Node

pytestmark = pytest.mark.bars

SETTINGS = """
[models.echo]
engine = "fake"
max_batch_size = 8
max_queue = 8
[models.echo.options]
token_delay_ms = 40
"""
TOKENS = 40


@dataclass
class Refused:
    """One caller that was told to come again."""

    told_s: float
    is_admitted: bool = False
    ended_s: float = 0.0


async def ask(client: httpx.AsyncClient, number: int) -> httpx.Response:
    body = {"model": "echo", "prompt": f"caller {number}", "max_tokens": TOKENS}
    return await client.post("/v1/completions", json=body)


async def overload(port: int, callers: int) -> tuple[list[Refused], float]:
    """Those who were refused, and when the last answer would have begun with no place ever empty."""
    refused: list[Refused] = []
    limits = httpx.Limits(max_connections=callers)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=120
    ) as client:
        await asyncio.gather(*(ask(client, n) for n in range(16)))  # a model that has been measured
        began = time.perf_counter()

        async def come(number: int) -> None:
            answer = await ask(client, number)
            if answer.status_code == 503:
                one = Refused(int(answer.headers["retry-after-ms"]) / 1000)
                refused.append(one)
                await asyncio.sleep(one.told_s)
                one.is_admitted = (await ask(client, number)).status_code == 200
                one.ended_s = time.perf_counter() - began

        await asyncio.gather(*(come(n) for n in range(callers)))
    return refused, began


def test_who_comes_back_when_told_is_let_in(
    new_node: Callable[..., Node], bar: Callable[[str], None]
) -> None:
    node = new_node(SETTINGS).start()
    callers = 80
    refused, _ = asyncio.run(overload(node.port, callers))

    admitted = [one for one in refused if one.is_admitted]
    answer_s = TOKENS * 0.040
    least_s = callers / 8 * answer_s  # with the batch full from beginning to end
    took_s = max(one.ended_s for one in admitted)
    bar(
        f"{len(refused)} of {callers} refused, told to wait {statistics.median(o.told_s for o in refused):.1f} s"
        f" (median); {len(admitted) / len(refused):.0%} of them let in when they came back;"
        f" all answered after {took_s:.1f} s, {took_s / least_s - 1:.0%} more than without a pause"
    )
    assert len(refused) >= callers - 24
    assert len(admitted) >= 0.9 * len(refused)
