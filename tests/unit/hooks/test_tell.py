"""Observers are told everything soon, and never felt."""

import asyncio
from types import SimpleNamespace

from llmhost import hookimpl
from llmhost.hooks.registry import Plugins
from llmhost.hooks.tell import Observers


def observer(name, observe) -> SimpleNamespace:
    return SimpleNamespace(__name__=name, observe=hookimpl(observe))


async def test_without_observers_nothing_happens():
    observers = Observers(Plugins.of())

    observers.tell("event")

    assert len(asyncio.all_tasks()) == 1
    await observers.close()


async def test_events_come_in_order_and_closing_delivers_the_rest():
    seen = []
    observers = Observers(Plugins.of(observer("p", lambda event: seen.append(event))))

    for event in range(5):
        observers.tell(event)
    assert seen == []
    await observers.close()

    assert seen == [0, 1, 2, 3, 4]


async def test_a_failing_observer_is_counted_and_still_told(caplog):
    seen = []

    def observe(event):
        seen.append(event)
        raise ValueError

    plugins = Plugins.of(observer("p", observe))
    observers = Observers(plugins)
    observers.tell(1)
    observers.tell(2)
    await observers.close()

    assert seen == [1, 2]
    assert plugins.report()[0].hooks[0].errors == 2
    assert any(line.startswith("hook.failed hook=observe plugin=p") for line in caplog.messages)


async def test_a_stuck_observer_misses_its_own_events_and_nobody_elses(caplog):
    seen = []
    told = asyncio.Event()

    async def stuck(event):
        await asyncio.Event().wait()

    def fine(event):
        seen.append(event)
        told.set()

    plugins = Plugins.of(observer("stuck", stuck), observer("fine", fine))
    observers = Observers(plugins, queue=1)
    for event in range(5):
        told.clear()
        observers.tell(event)
        await told.wait()
    await observers.close(timeout_s=0.01)

    assert seen == [0, 1, 2, 3, 4]
    assert plugins.report()[0].hooks[0].dropped == 4
    assert [line for line in caplog.messages if line.startswith("hook.dropped")] == [
        "hook.dropped hook=observe plugin=stuck events=1 why=queue_full",
        "hook.dropped hook=observe plugin=stuck events=2 why=queue_full",
        "hook.dropped hook=observe plugin=stuck events=4 why=closing",
    ]


async def test_after_closing_nobody_is_told():
    seen = []
    observers = Observers(Plugins.of(observer("p", lambda event: seen.append(event))))
    await observers.close()

    observers.tell(1)

    assert seen == []
