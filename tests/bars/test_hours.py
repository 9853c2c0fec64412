"""Whole hours, compressed by a clock that only acts move: every device's time is told apart without gap or overlap, and
what it cost is borne to the nano-dollar."""

import asyncio
import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.cost.hour import DEVICES, HOUR_NS, Hour, live_through, some_rates

pytestmark = pytest.mark.bars

SEEDS = (1, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_hour_with_everything_in_it_adds_up(
    seed: int, tmp_path: Path, bar: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "llmhost")  # steps fail by the thousand
    hour = asyncio.run(_live(tmp_path, seed))

    readings = [hour.costs.read(device) for device in DEVICES]
    busy_ns = sum(reading.busy_ns for reading in readings)
    requests = sum(told.requests for told in hour.told.values())
    bar(
        f"an hour of {len(DEVICES)} devices by the manual clock, seed {seed}: {sum(hour.done.values()):,} acts,"
        f" {hour.done['end_load']} loads and wakings, {requests:,} requests, {hour.steps:,} steps,"
        f" {hour.preemptions:,} preemptions, {hour.guesses:,} guesses, {hour.wasted_steps:,} failed steps,"
        f" {busy_ns / 1e9:.0f} device seconds busy: 0 ns and 0 nano-dollars off"
    )


async def _live(folder: Path, seed: int) -> Hour:
    hour = Hour(folder, seed, some_rates(random.Random(seed)))
    try:
        await live_through(hour, 0, HOUR_NS)
    finally:
        await hour.close()
    return hour
