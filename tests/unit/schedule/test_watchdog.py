"""A step that does not come back is noticed, named and told of, and forgotten when it does come back."""

import pytest
from tests.unit.schedule.kit import a_spec
from tests.unit.schedule.test_engine_loop import Gate, Reader, Spoilt, make_engine

from llmhost.core.errors import Overloaded
from llmhost.schedule.watchdog import FIRST_STEPS, FIRST_STEPS_FACTOR


class Hand:
    """A clock that is ahead of the real one by as much as a test says."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def __call__(self) -> int:
        from time import monotonic_ns

        return monotonic_ns() + self.ahead_ns


async def test_a_hung_step_is_noticed_told_of_once_and_forgotten_when_it_comes_back(
    caplog: pytest.LogCaptureFixture,
):
    clock, gate, reader = Hand(), Gate(), Reader()
    engine = make_engine(Spoilt(sleep=gate), now_ns=clock, step_timeout_s=100)
    engine.start()
    engine.submit(a_spec(max_new_tokens=FIRST_STEPS + 3), reader)
    gate.let_through(FIRST_STEPS)
    for _ in range(FIRST_STEPS + 1):
        await gate.step_begun()

    clock.ahead_ns = 99 * 10**9
    engine._watchdog.look()
    assert engine.load().hung_s == 0

    clock.ahead_ns = 101 * 10**9
    engine._watchdog.look()
    engine._watchdog.look()
    assert 101 <= engine.load().hung_s < 110
    assert caplog.text.count("engine.hangs model=fake@1") == 1
    assert "in run" in caplog.text  # where it hangs
    with pytest.raises(Overloaded, match="hangs in a step") as refused:
        engine.submit(a_spec(), Reader())
    assert refused.value.retry_after_s == 10

    gate.open()
    await reader.end()
    engine._watchdog.look()
    assert engine.load().hung_s == 0
    assert "engine.moves_again model=fake@1" in caplog.text
    await engine.stop()


async def test_first_steps_may_take_longer():
    clock, gate, reader = Hand(), Gate(), Reader()
    engine = make_engine(Spoilt(sleep=gate), now_ns=clock, step_timeout_s=100)
    engine.start()
    engine.submit(a_spec(max_new_tokens=1), reader)
    await gate.step_begun()

    clock.ahead_ns = 101 * 10**9
    assert engine.load().hung_s == 0
    clock.ahead_ns = (100 * FIRST_STEPS_FACTOR + 1) * 10**9
    assert engine.load().hung_s > 0
    gate.open()
    await reader.end()
    await engine.stop()


async def test_an_idle_engine_does_not_hang():
    clock = Hand()
    engine = make_engine(Spoilt(), now_ns=clock, step_timeout_s=1)
    engine.start()
    clock.ahead_ns = 10**12
    assert engine.load().hung_s == 0
    await engine.stop()
