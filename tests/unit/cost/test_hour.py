"""Part of an hour with everything in it: each device's time is told apart without a gap, and its cost borne to the
nano-dollar. `make bars` lives through whole hours."""

import asyncio
import random
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.cost.hour import Hour, live_through, some_rates


@given(st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_time_tiles_and_cost_is_borne_whatever_a_node_does(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_live(Path(folder), seed))


async def _live(folder: Path, seed: int) -> None:
    hour = Hour(folder, seed, some_rates(random.Random(seed)))
    try:
        await live_through(hour, 150)
    finally:
        await hour.close()
