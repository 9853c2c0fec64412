"""How long threads keep the interpreter, with models whose steps go in and out of it and with others."""

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.unit.pipeline.node import until
from tests.unit.schedule.kit import a_spec
from tests.unit.schedule.test_engine_loop import Gate, Reader, Spoilt, running

from llmhost.schedule.engine_loop import EngineLoop
from llmhost.schedule.interpreter import QUICK_S, RELAXED_S, Hurry


@pytest.fixture(autouse=True)
def relaxed() -> Iterator[None]:
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(RELAXED_S)
    yield
    sys.setswitchinterval(before_s)


def is_quick() -> bool:
    return sys.getswitchinterval() == pytest.approx(QUICK_S)


def test_it_is_handed_on_sooner_for_as_long_as_anybody_is_in_a_hurry() -> None:
    one, other, patient = Hurry(is_ever=True), Hurry(is_ever=True), Hurry(is_ever=False)
    patient.set(True)
    assert not is_quick()
    one.set(True)
    one.set(True)
    other.set(True)
    one.set(False)
    assert is_quick()
    other.set(False)
    one.set(False)
    assert sys.getswitchinterval() == pytest.approx(RELAXED_S)


def test_whoever_has_it_quicker_still_keeps_that() -> None:
    sys.setswitchinterval(QUICK_S / 5)
    hurry = Hurry(is_ever=True)
    hurry.set(True)
    assert sys.getswitchinterval() == pytest.approx(QUICK_S / 5, abs=2e-6)
    hurry.set(False)
    assert sys.getswitchinterval() == pytest.approx(QUICK_S / 5, abs=2e-6)


@pytest.mark.parametrize("reenters", [True, False])
async def test_an_engine_hurries_while_it_has_work(*, reenters: bool) -> None:
    gate, reader = Gate(), Reader()
    runner = Spoilt(sleep=gate)
    runner.facts = replace(runner.facts, reenters=reenters)
    async with running(runner) as engine:
        assert not is_quick()
        for _ in range(2):
            reader = Reader()
            engine.submit(a_spec(max_new_tokens=2), reader)
            await gate.step_begun()
            assert is_quick() is reenters
            gate.let_through()
            await gate.step_begun()
            assert is_quick() is reenters
            gate.let_through()
            await reader.end()
            await until(lambda: not is_quick())


async def test_an_engine_that_has_work_before_it_looks_for_some_hurries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_some, gate, wait_for_work = threading.Event(), Gate(), EngineLoop._wait_for_work

    def late(self: EngineLoop) -> None:
        has_some.wait()
        wait_for_work(self)

    monkeypatch.setattr(EngineLoop, "_wait_for_work", late)
    runner = Spoilt(sleep=gate)
    runner.facts = replace(runner.facts, reenters=True)
    async with running(runner) as engine:
        reader = Reader()
        engine.submit(a_spec(max_new_tokens=1), reader)
        has_some.set()
        await gate.step_begun()
        assert is_quick()
        gate.open()
        await reader.end()


async def test_an_engine_that_is_stopped_amid_its_work_leaves_it_as_it_was() -> None:
    gate = Gate()
    runner = Spoilt(sleep=gate)
    runner.facts = replace(runner.facts, reenters=True)
    async with running(runner) as engine:
        engine.submit(a_spec(max_new_tokens=50), Reader())
        await gate.step_begun()
        gate.open()
    assert not is_quick()
