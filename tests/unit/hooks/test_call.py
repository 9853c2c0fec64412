"""Asking: order, timing, naming, counting, and what each rule makes of a failure."""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost import hookimpl
from llmhost.core.errors import ConfigError, PluginFailed, SafetyUnavailable
from llmhost.hooks.call import (
    SLOW_S,
    Answer,
    Registered,
    ask,
    attempt,
    collect,
    shut_down,
    start_up,
)
from llmhost.hooks.find import Found
from llmhost.hooks.now import NotNow, ask_each_now, ask_now, ask_once
from llmhost.hooks.registry import HookReport, Plugins
from llmhost.hooks.spec import RULES, Price, Refusal

TINY_S = 0.01
"""A timeout for implementations that never answer."""
FACTS: dict[str, Any] = {"request": 1, "caller": 2, "price": 3, "now": 4}
"""Of `quote_price`."""


def plugin(name: str, *functions: Callable[..., Any]) -> SimpleNamespace:
    return SimpleNamespace(__name__=name, **{f.__name__: hookimpl(f) for f in functions})


def report(plugins: Plugins, index: int = 0) -> HookReport:
    return plugins.report()[index].hooks[0]


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    """Of one kind: on a busy machine any plain function may be reported as slow."""
    return [line for line in caplog.messages if line.startswith(event)]


class Timer:
    """Every reading is `step_s` later than the one before."""

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def slow(*plugins: SimpleNamespace) -> Plugins:
    """A host on which every call seems to take a second, as the two before did."""
    host = Plugins(
        [Found(p.__name__, "given", None, p) for p in plugins], timer=Timer(1.0), timeout_s=5.0
    )
    for hook in RULES:
        for implementation in host.implementations(hook):
            for _ in range(2):
                assert not implementation.stats.is_slow(1.0, SLOW_S)
    return host


async def test_without_plugins_there_is_no_answer():
    assert await ask(Plugins.of(), "may_cache", request=None) is None


async def test_the_first_opinion_wins_and_the_rest_are_not_asked():
    asked = []

    def may_cache(request): asked.append("a")  # fmt: skip

    async def no_opinion(request): asked.append("b")  # fmt: skip

    async def opinion(request):
        asked.append("c")
        return False

    def never():
        raise AssertionError

    no_opinion.__name__ = opinion.__name__ = never.__name__ = "may_cache"
    plugins = Plugins.of(
        plugin("a", may_cache), plugin("b", no_opinion), plugin("c", opinion), plugin("d", never)
    )

    answer = await ask(plugins, "may_cache", request=None)

    assert answer == Answer("c", False)
    assert asked == ["a", "b", "c"]


async def test_an_implementation_gets_the_facts_that_it_names():
    def check_output(caller, text):
        return Refusal(f"{text} for {caller}")

    plugins = Plugins.of(plugin("p", check_output))

    answer = await ask(plugins, "check_output", text="t", request=None, caller="c")

    assert answer is not None
    assert answer.opinion == Refusal("t for c")


async def test_a_failed_check_of_a_prompt_refuses_it_and_says_who_failed(caplog):
    def check_input(request):
        raise ValueError("no\nmodel")

    plugins = Plugins.of(plugin("guard", check_input))

    with pytest.raises(SafetyUnavailable, match="'guard'") as caught:
        await ask(plugins, "check_input", request=None, caller=None)

    assert caught.value.status == 503
    assert "model" not in caught.value.message
    assert lines(caplog, "hook.failed") == [
        "hook.failed hook=check_input plugin=guard error=ValueError: no model"
    ]
    assert (report(plugins).calls, report(plugins).errors) == (1, 1)


async def test_only_the_first_failure_is_logged_with_its_traceback(caplog):
    def route_request(request):
        raise ValueError

    plugins = Plugins.of(plugin("p", route_request))
    for _ in range(2):
        await ask(plugins, "route_request", request=None, candidates=())

    assert [bool(r.exc_info) for r in caplog.records if "hook.failed" in r.message] == [True, False]


@pytest.mark.parametrize("hook", ["identify_caller", "admit_request", "quote_price"])
async def test_identity_admission_and_money_fail_closed(hook):
    def broken():
        raise ValueError

    broken.__name__ = hook

    with pytest.raises(PluginFailed):
        await ask(Plugins.of(plugin("p", broken)), hook)


async def test_a_failed_router_is_skipped():
    def route_request(): raise ValueError  # fmt: skip

    def second(candidates): return candidates[1]  # fmt: skip

    second.__name__ = "route_request"
    plugins = Plugins.of(plugin("broken", route_request), plugin("fine", second))

    answer = await ask(plugins, "route_request", request=None, candidates=("a", "b"))

    assert answer == Answer("fine", "b")


async def test_a_failure_keeps_an_answer_out_of_the_cache():
    def may_cache(): raise ValueError  # fmt: skip

    assert await ask(Plugins.of(plugin("p", may_cache)), "may_cache", request=None) == Answer(
        "p", False, is_assumed=True
    )


async def test_a_failed_check_of_an_answer_counts_as_a_refusal():
    async def check_output(): raise ValueError  # fmt: skip

    answer = await ask(Plugins.of(plugin("p", check_output)), "check_output")

    assert answer is not None
    assert isinstance(answer.opinion, Refusal)
    assert answer.is_assumed


@pytest.mark.parametrize(
    ("hook", "opinion", "said"),
    [
        ("check_input", True, "it returned bool, which should be Refusal or None"),
        ("quote_price", 0.5, "it returned float, which should be Price or None"),
        ("route_request", "c", "it returned 'c', which is none of the candidates"),
    ],
)
async def test_what_is_no_opinion_counts_as_a_failure(caplog, hook, opinion, said):
    def wrong(): return opinion  # fmt: skip

    wrong.__name__ = hook
    plugins = Plugins.of(plugin("p", wrong))
    with suppress(PluginFailed):  # or an answer of None, as the rule says
        assert await ask(plugins, hook, candidates=("a", "b")) is None

    assert report(plugins).errors == 1
    assert said in lines(caplog, "hook.failed")[0]


async def test_a_price_is_an_opinion():
    def quote_price(price): return price.times(1, 2)  # fmt: skip

    plugins = Plugins.of(plugin("p", quote_price))

    answer = await ask(plugins, "quote_price", price=Price.of(input="2", output="4"))

    assert answer is not None
    assert answer.opinion == Price.of(input="1", output="2")


async def test_an_implementation_that_never_answers_is_timed_out(caplog):
    async def check_input(): await asyncio.Event().wait()  # fmt: skip

    plugins = Plugins.of(plugin("p", check_input), timeout_s=TINY_S)

    with pytest.raises(SafetyUnavailable):
        await ask(plugins, "check_input")

    assert (report(plugins).errors, report(plugins).timeouts) == (0, 1)
    assert "error=TimedOut: no answer within 0.01 s" in lines(caplog, "hook.failed")[0]


async def test_a_timeout_inside_the_plugin_is_its_own_error():
    async def check_input():
        raise TimeoutError

    plugins = Plugins.of(plugin("p", check_input))
    with pytest.raises(SafetyUnavailable):
        await ask(plugins, "check_input")

    assert (report(plugins).errors, report(plugins).timeouts) == (1, 0)


async def test_a_plugin_that_eats_its_cancellation_holds_up_nobody():
    stop = asyncio.Event()
    ended = asyncio.Event()

    async def may_cache():
        while not stop.is_set():
            try:
                await stop.wait()
            except asyncio.CancelledError:
                continue
        ended.set()
        raise ValueError("too late to matter")

    answer = await ask(Plugins.of(plugin("p", may_cache), timeout_s=TINY_S), "may_cache")

    assert answer == Answer("p", False, is_assumed=True)
    stop.set()
    await ended.wait()


async def test_a_plugin_that_cancels_itself_does_not_cancel_the_request():
    async def admit_request():
        raise asyncio.CancelledError

    plugins = Plugins.of(plugin("p", admit_request))
    with pytest.raises(PluginFailed):
        await ask(plugins, "admit_request")

    assert report(plugins).errors == 1


async def test_who_answers_at_once_is_asked_once():
    asked = []

    def fails():
        raise ValueError

    def hands_out():
        asked.append(1)
        return asyncio.sleep(0, Refusal("no"))

    def of(function):
        return Plugins.of(SimpleNamespace(__name__="p", check_output=hookimpl(function)))

    failed = ask_once(of(fails), "check_output")
    assert failed is not None and failed.is_assumed
    assert ask_once(of(lambda: None), "check_output") is None

    plugins = of(hands_out)
    for _ in range(2):
        with pytest.raises(NotNow):
            ask_once(plugins, "check_output")
    assert asked == [1]
    assert await ask(plugins, "check_output") == Answer("p", Refusal("no"))


@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize("is_moved", [False, True])
async def test_a_plain_function_that_says_it_was_cancelled_has_failed(is_traced, is_moved):
    def admit_request():
        raise asyncio.CancelledError

    plugins = Plugins.of(plugin("p", admit_request), trace=is_traced)
    if is_moved:
        plugins.implementations("admit_request")[0].move_to_threads()
    with pytest.raises(PluginFailed):
        await ask(plugins, "admit_request")

    assert report(plugins).errors == 1
    plugins.close()


@pytest.mark.parametrize(
    "fault", [ValueError("x"), asyncio.CancelledError(), SystemExit(1), GeneratorExit(), None]
)
def test_what_fails_of_who_is_asked_in_passing_is_counted_and_logged(fault, caplog):
    def may_cache():
        if fault is not None:
            raise fault
        return "no opinion"

    plugins = Plugins.of(plugin("p", may_cache))
    with pytest.raises(NotNow):
        ask_now(plugins, "may_cache")

    assert report(plugins).errors == 1
    assert len(lines(caplog, "hook.failed")) == 1


async def test_a_plugin_can_not_end_the_server():
    def admit_request():
        raise SystemExit

    with pytest.raises(PluginFailed):
        await ask(Plugins.of(plugin("p", admit_request)), "admit_request")


async def test_a_plugin_that_was_awaited_can_not_end_the_server(caplog):
    async def admit_request():
        await asyncio.sleep(0)
        raise SystemExit(3)

    with pytest.raises(PluginFailed):
        await ask(Plugins.of(plugin("p", admit_request)), "admit_request")

    assert "it asked for the process's end with 3" in lines(caplog, "hook.failed")[0]


def test_a_failure_that_can_not_be_read_is_one_all_the_same(caplog):
    class Mute(Exception):
        def __str__(self):
            raise ValueError

    asked = []

    def check_input():
        asked.append(1)
        if len(asked) == 2:
            raise Mute

    plugins = Plugins.of(plugin("p", check_input))
    said = ask_each_now(plugins, "check_input", [(None, None)] * 3)

    assert [answer is None for answer in said] == [True, False, True]
    assert "Mute: its text can't be read (ValueError)" in lines(caplog, "hook.failed")[0]


class Stranger(BaseException):
    """As some libraries raise where a time is over: no Exception, and yet a plugin's failure."""


@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize("is_moved", [False, True])
async def test_whatever_a_plugin_raises_is_its_failure(is_traced, is_moved):
    def admit_request():
        raise Stranger

    async def may_cache():
        raise Stranger

    plugins = Plugins.of(plugin("p", admit_request), plugin("q", may_cache), trace=is_traced)
    if is_moved:
        plugins.implementations("admit_request")[0].move_to_threads()
    with pytest.raises(PluginFailed):
        await ask(plugins, "admit_request")

    assert await ask(plugins, "may_cache") == Answer("q", False, is_assumed=True)
    assert report(plugins).errors == 1
    plugins.close()


async def test_an_interrupt_is_no_plugins_failure():
    def admit_request():
        raise KeyboardInterrupt

    plugins = Plugins.of(plugin("p", admit_request))
    for asking in (ask_now, ask_once):
        with pytest.raises(KeyboardInterrupt):
            asking(plugins, "admit_request")
    with pytest.raises(KeyboardInterrupt):
        await ask(plugins, "admit_request")

    assert report(plugins).errors == 0


async def test_a_caller_who_leaves_stops_the_plugin_too():
    started, stopped = asyncio.Event(), asyncio.Event()

    async def admit_request():
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    plugins = Plugins.of(plugin("p", admit_request))
    asking = asyncio.create_task(ask(plugins, "admit_request"))
    await started.wait()
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
    await stopped.wait()
    assert report(plugins).errors == 0


async def test_a_sync_implementation_that_blocks_moves_to_a_thread(caplog):
    threads = []

    def may_cache(request):
        threads.append(threading.current_thread())
        return True

    plugins = slow(plugin("p", may_cache))
    for _ in range(2):
        assert await ask(plugins, "may_cache", request=None) == Answer("p", True)

    assert threads[0] is threading.main_thread()
    assert threads[1].daemon
    assert report(plugins).in_threads
    assert caplog.messages == [
        "hook.slow hook=may_cache plugin=p took_ms=1000.0 limit_ms=5 why=blocks_the_loop"
    ]
    plugins.close()


@pytest.mark.parametrize(
    ("slow_s", "slow_calls", "fast_between", "is_moved"),
    [
        (0.006, 20, 0, False),
        (0.006, 40, 0, True),
        (1.0, 2, 0, False),
        (1.0, 3, 0, True),
        (1.0, 99, 10, False),
        (1.0, 9, 3, True),
    ],
)
async def test_a_function_that_is_seldom_slow_stays_on_the_loop(
    slow_s: float, slow_calls: int, fast_between: int, is_moved: bool
):
    def may_cache(): ...

    timer = Timer(0.0)
    plugins = Plugins([Found("p", "given", None, plugin("p", may_cache))], timer=timer)
    for _ in range(slow_calls):
        timer.step_s = slow_s
        await ask(plugins, "may_cache")
        timer.step_s = 0.0
        for _ in range(fast_between):
            await ask(plugins, "may_cache")

    assert report(plugins).in_threads == is_moved
    plugins.close()


async def test_a_blocking_failure_moves_to_a_thread_as_well():
    def route_request():
        raise ConnectionError

    plugins = slow(plugin("p", route_request))
    await ask(plugins, "route_request", request=None, candidates=())

    assert report(plugins).in_threads


async def test_an_async_implementation_stays_on_the_loop(caplog):
    async def may_cache(): return True  # fmt: skip

    plugins = slow(plugin("p", may_cache))
    await ask(plugins, "may_cache")

    assert not report(plugins).in_threads
    assert caplog.messages == []


async def test_a_thread_is_timed_out_and_sees_the_requests_context():
    request_id: ContextVar[str] = ContextVar("request_id")
    seen = []
    release = threading.Event()

    def check_input():
        seen.append(request_id.get())
        if len(seen) > 1:
            release.wait()

    plugins = slow(plugin("p", check_input))
    request_id.set("req_1")
    await ask(plugins, "check_input")
    plugins.timeout_s = TINY_S

    with pytest.raises(SafetyUnavailable):
        await ask(plugins, "check_input")

    assert seen == ["req_1", "req_1"]
    assert report(plugins).timeouts == 1
    release.set()
    plugins.close()


async def test_a_plain_function_may_return_an_awaitable():
    async def think(): return True  # fmt: skip

    def may_cache(): return think()  # fmt: skip

    plugins = slow(plugin("p", may_cache))
    for _ in range(2):  # on the loop, then from a thread
        assert await ask(plugins, "may_cache") == Answer("p", True)
    plugins.close()


async def test_tracing_logs_each_call_with_its_answer(caplog):
    def may_cache(request): return True  # fmt: skip

    caplog.set_level(logging.INFO, "llmhost.hooks")
    await ask(Plugins.of(plugin("p", may_cache), trace=True), "may_cache", request="secret")

    (line,) = lines(caplog, "hook.called")
    assert line.startswith("hook.called hook=may_cache plugin=p took_ms=")
    assert line.endswith("answer=True")


async def test_calls_are_counted_and_timed():
    def may_cache(): ...

    plugins = slow(plugin("p", may_cache))
    assert report(plugins).p50_ms is None
    for _ in range(3):
        await ask(plugins, "may_cache")

    assert report(plugins).calls == 3
    assert report(plugins).p50_ms == pytest.approx(1000, rel=2)
    assert report(plugins).p99_ms is not None
    plugins.close()


def test_register_hooks_collect_with_the_plugins_name():
    def register_routes(register):
        register("x")
        register("y")

    assert collect(Plugins.of(plugin("p", register_routes)), "register_routes") == [
        Registered("p", "x"),
        Registered("p", "y"),
    ]


def test_a_plugin_that_can_not_register_its_engine_fails_start_up():
    def register_engines(register):
        raise ImportError("no driver")

    with pytest.raises(ConfigError, match="'p' failed in register_engines: ImportError: no driver"):
        collect(Plugins.of(plugin("p", register_engines)), "register_engines")


def test_a_plugin_that_can_not_register_its_commands_goes_without_them(caplog):
    def register_commands(register):
        register("half")
        raise ImportError

    def fine(register): register("whole")  # fmt: skip

    fine.__name__ = "register_commands"
    plugins = Plugins.of(plugin("p", register_commands), plugin("q", fine))

    assert collect(plugins, "register_commands") == [Registered("q", "whole")]
    assert lines(caplog, "hook.failed hook=register_commands plugin=p")


async def test_plugins_start_in_order_and_shut_down_in_reverse():
    calls = []

    def started(name: str) -> SimpleNamespace:
        async def startup(host): calls.append(f"{name} starts on {host}")  # fmt: skip

        def shutdown(): calls.append(f"{name} ends")  # fmt: skip

        return plugin(name, startup, shutdown)

    plugins = Plugins.of(started("a"), started("b"))
    await start_up(plugins, "host")
    await shut_down(plugins, "host")

    assert calls == ["a starts on host", "b starts on host", "b ends", "a ends"]
    plugins.close()


async def test_a_failed_start_is_named_and_a_failed_end_only_logged(caplog):
    def startup(host):
        raise OSError("no disk")

    async def shutdown(host):
        raise OSError("no disk")

    plugins = Plugins.of(plugin("p", startup, shutdown))
    with pytest.raises(ConfigError, match="'p' failed in startup: OSError: no disk"):
        await start_up(plugins, "host")
    await shut_down(plugins, "host")

    assert "hook=shutdown" in caplog.messages[-1]
    plugins.close()


async def test_an_implementation_can_be_tried_alone():
    def observe(event): return "ignored"  # fmt: skip

    plugins = Plugins.of(plugin("p", observe))
    (one,) = plugins.implementations("observe")

    assert await attempt(plugins, one, {"event": 1}) == "ignored"


@pytest.mark.parametrize(
    "names", [names for count in range(5) for names in permutations(FACTS, count)]
)
async def test_each_gets_the_facts_that_it_names_however_it_is_asked(names: tuple[str, ...]):
    source = f"def check({', '.join(names)}): seen.append(({', '.join(names)}{',' * bool(names)}))"
    seen: list[tuple[object, ...]] = []
    made: dict[str, Any] = {"seen": seen}
    exec(source, made)  # a function for each order
    plugins = Plugins.of(SimpleNamespace(__name__="p", quote_price=hookimpl(made["check"])))

    ask_now(plugins, "quote_price", *FACTS.values())
    ask_once(plugins, "quote_price", *FACTS.values())
    await ask(plugins, "quote_price", **FACTS)

    assert seen == [tuple(FACTS[name] for name in names)] * 3
    assert report(plugins).calls == 3


@pytest.mark.parametrize("ask_at_once", [ask_now, ask_once])
async def test_what_is_handed_out_in_passing_is_not_left_to_run(ask_at_once):
    ended = asyncio.Event()

    async def think() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    def check_output():
        return task

    task = asyncio.create_task(think())
    await asyncio.sleep(0)
    plugins = Plugins.of(plugin("p", check_output))
    with pytest.raises(NotNow):
        ask_at_once(plugins, "check_output")

    await ended.wait()
    assert task.cancelled()


def test_an_opinion_that_is_none_is_a_failure_to_who_is_asked_once(caplog):
    def check_output(): return "no"  # fmt: skip

    def may_cache(): return 1  # fmt: skip

    plugins = Plugins.of(plugin("p", check_output, may_cache))
    refused = ask_once(plugins, "check_output", "text", None, None)

    assert refused is not None and refused.is_assumed
    assert ask_once(plugins, "may_cache", None) == Answer("p", False, is_assumed=True)
    assert len(lines(caplog, "hook.failed")) == 2


class Mixed:
    """Does as it is asked: has no opinion, has one, fails, or returns what is none."""

    def __init__(self, name: str) -> None:
        self.__name__ = name
        self.asked: list[object] = []

    @hookimpl
    def check_output(self, text, caller):
        return self.check_input(text, caller)

    @hookimpl
    def check_input(self, request, caller):
        self.asked.append(request)
        wish = caller.get(self.__name__)
        if wish == "fails":
            raise ValueError
        return {"refuses": Refusal(f"no {request}"), "errs": "no"}.get(wish)


wishes = st.sampled_from(("passes", "refuses", "fails", "errs"))


@given(
    st.lists(st.fixed_dictionaries({"a": wishes, "b": wishes}), max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_one_after_the_other_each_is_told_what_he_would_be_told_alone(
    asked, has_two: bool, once: bool
):
    names = ("a", "b")[: 1 + has_two]
    together, alone = [Mixed(name) for name in names], [Mixed(name) for name in names]
    facts = [(number, None, wish) if once else (number, wish) for number, wish in enumerate(asked)]
    hook, ask_one = ("check_output", ask_once) if once else ("check_input", ask_now)

    plugins = Plugins.of(*alone)
    expected: list[object] = []
    for each in facts:
        try:
            expected.append(ask_one(plugins, hook, *each))
        except NotNow:
            expected.append(NotNow)
    asked_together = Plugins.of(*together)
    said = ask_each_now(asked_together, hook, iter(facts), once=once)

    assert [NotNow if isinstance(one, NotNow) else one for one in said] == expected
    assert [one.asked for one in together] == [one.asked for one in alone]
    for each, other in zip(asked_together.report(), plugins.report(), strict=True):
        counts = [[(h.hook, h.calls, h.errors) for h in one.hooks] for one in (each, other)]
        assert counts[0] == counts[1]


def test_a_function_that_blocks_is_not_called_for_the_others_of_its_group(caplog):
    asked = []

    def check_input(request): asked.append(request)  # fmt: skip

    plugins = slow(plugin("p", check_input))
    said = ask_each_now(plugins, "check_input", [(number, None) for number in range(3)])

    assert asked == [0] and said[0] is None
    assert isinstance(said[1], NotNow) and isinstance(said[2], NotNow)
    assert len(lines(caplog, "hook.slow")) == 1
    assert report(plugins).calls == 1
    plugins.close()


def test_facts_are_looked_at_when_those_before_have_been_asked_about():
    seen = []

    def check_input(request): seen.append(f"asked {request}")  # fmt: skip

    def facts():
        for number in range(2):
            seen.append(f"looked at {number}")
            yield number, None

    ask_each_now(Plugins.of(plugin("p", check_input)), "check_input", facts())

    assert seen == ["looked at 0", "asked 0", "looked at 1", "asked 1"]


def test_what_one_hands_out_to_be_awaited_is_asked_of_nobody_else_at_once():
    async def think() -> None: ...

    asked = []

    def check_input(request):
        asked.append(request)
        return think()

    plugins = Plugins.of(plugin("p", check_input))
    said = ask_each_now(plugins, "check_input", [(1, None), (2, None)])

    assert asked == [1]
    assert all(isinstance(one, NotNow) for one in said)
