"""Lines begin at once while nobody else asks, and leave others alone for the greater part of the time while they do."""

import asyncio

import pytest

from llmhost.pipeline.batches import pace as module
from llmhost.pipeline.batches.pace import HEARD_NS, TURN_NS, Pace
from llmhost.testing import ManualClock, at


class Node:
    """What a pace sees of one; sleeping moves its clock."""

    def __init__(self, patch: pytest.MonkeyPatch, share: float = 0.25) -> None:
        self.clock: ManualClock = at("2026-03-01T12:00")
        self.heard_ns: int | None = None
        self.others = 0
        self.slept_s = 0.0
        self.pace = Pace(
            share,
            self.clock,
            lambda: self.heard_ns,
            lambda: self.others + self.pace.running,
        )
        self._yield = asyncio.sleep
        patch.setattr(module.asyncio, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        self.clock.advance(seconds)
        await self._yield(0)

    def hear(self) -> None:
        self.heard_ns = self.clock.monotonic_ns()


async def test_a_line_begins_at_once_while_nobody_else_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node(monkeypatch)
    for _ in range(20):
        await node.pace.begin()
        node.clock.advance(10.0)
    for _ in range(20):
        node.pace.end()
    await node.pace.begin()
    assert node.slept_s == 0


async def test_while_others_ask_lines_rest_for_as_long_as_their_share_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node(monkeypatch, share=0.25)
    node.others = 1
    worked_s = 0.0
    for _ in range(10):
        await node.pace.begin()
        node.clock.advance(0.1)
        worked_s += 0.1
        node.pace.end()
    await node.pace.begin()
    assert node.slept_s == pytest.approx(3 * worked_s)


async def test_a_turn_ends_when_its_last_line_has_ended_and_no_line_joins_it_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node(monkeypatch, share=0.5)
    node.others = 1
    await node.pace.begin()
    await node.pace.begin()
    node.clock.advance(TURN_NS / 1e9)
    waiting = asyncio.create_task(node.pace.begin())
    await node._yield(0)
    node.pace.end()
    await node._yield(0)
    assert not waiting.done()
    node.clock.advance(1.0)
    node.pace.end()
    await waiting
    assert node.slept_s == pytest.approx(TURN_NS / 1e9 + 1.0)
    assert node.pace.running == 1


async def test_what_ran_before_others_came_costs_no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch, share=0.5)
    await node.pace.begin()
    node.clock.advance(3600.0)
    node.hear()
    await node.pace.begin()
    node.clock.advance(0.1)
    node.pace.end()
    node.pace.end()
    await node.pace.begin()
    assert node.slept_s == pytest.approx(0.1)


async def test_others_are_forgotten_a_while_after_they_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node(monkeypatch, share=0.01)
    node.hear()
    await node.pace.begin()
    node.clock.advance(1.0)
    node.pace.end()
    await node.pace.begin()
    assert node.slept_s <= HEARD_NS / 1e9
    node.pace.end()
    await node.pace.begin()
    assert node.slept_s <= HEARD_NS / 1e9


async def test_a_share_of_one_never_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch, share=1.0)
    node.others = 1
    for _ in range(5):
        await node.pace.begin()
        node.clock.advance(1.0)
        node.pace.end()
    assert node.slept_s == 0
