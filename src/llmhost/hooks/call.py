"""How a hook is called: one implementation at a time, in pluggy's order, timed, named and counted.

pluggy itself has no notion of awaiting, of timeouts or of one implementation's failure, so it only keeps the lists;
see `hooks.spec` for what each hook's failure means. Everything here runs on the HTTP loop.
"""

import asyncio
import inspect
import logging
import reprlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmhost.core.errors import ConfigError, LlmhostError
from llmhost.hooks.registry import Implementation, Plugins
from llmhost.hooks.spec import Kind

log = logging.getLogger("llmhost.hooks")

SLOW_S = 0.005
"""A sync implementation that takes longer on the average of its last calls is called in a thread from then on."""
RAISED = BaseException
"""Boundary: what a plugin's plain function may raise is anything. Nobody is cancelled while one runs, so a cancellation
is what it asked for and did not get. Only KeyboardInterrupt is the operator's, and `note_failure` raises it again."""


_SHORT = reprlib.Repr()
_SHORT.maxother = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """The first opinion, and whose it is."""

    plugin: str
    opinion: Any
    is_assumed: bool = False
    """The plugin failed, and this is what its hook's rule assumes then."""


@dataclass(frozen=True, slots=True)
class Registered:
    """One object that a plugin handed in."""

    plugin: str
    item: Any


class HookFailed(Exception):
    """One implementation raised, took too long, or returned what is no opinion. Logged and counted already."""


async def ask(plugins: Plugins, hook: str, **facts: object) -> Answer | None:
    """The first opinion that any plugin has. Raises what the hook's rule says when a plugin fails closed."""
    for implementation in plugins.lists.get(hook, ()):
        try:
            if implementation.is_async or implementation.workers is not None or plugins.trace:
                opinion = await attempt(plugins, implementation, facts)
            else:
                args = [facts[name] for name in implementation.argnames]
                opinion = called_here(plugins.timer, implementation, implementation.function, *args)
                if opinion is None:
                    continue
                opinion = await _heard(plugins, implementation, facts, opinion)
        except HookFailed as failure:
            if (assumed := meaning(implementation, failure)) is not None:
                return assumed
            continue
        if opinion is not None:
            return Answer(implementation.plugin, opinion)
    return None


def failed(implementation: Implementation, error: BaseException) -> HookFailed:
    note_failure(implementation, error)
    return HookFailed(f"{implementation.hook} of {implementation.plugin}")


def meaning(implementation: Implementation, failure: HookFailed) -> Answer | None:
    """What its rule makes of a failure: an answer, or nothing. Raises it where it says so."""
    rule = implementation.rule
    if rule.raises is not None:
        raise _refusal(rule.raises, implementation) from failure
    if rule.assumes is not None:
        return Answer(implementation.plugin, rule.assumes, is_assumed=True)
    return None


def collect(plugins: Plugins, hook: str) -> list[Registered]:
    """What every plugin hands in through a register hook. A plugin that fails hands in nothing."""
    collected: list[Registered] = []
    for implementation in plugins.implementations(hook):
        items: list[Any] = []
        started = plugins.timer()
        try:
            implementation.function(*([items.append] if implementation.argnames else []))
        except RAISED as error:
            note_failure(implementation, error)
            if implementation.rule.raises is not None:
                raise _start_failure(implementation, error) from error
            continue
        finally:
            implementation.stats.took(plugins.timer() - started)
        collected += [Registered(implementation.plugin, item) for item in items]
    return collected


async def start_up(plugins: Plugins, host: object) -> None:
    """Call every `startup`. Raises ConfigError, naming the plugin, at the first that fails."""
    for implementation in plugins.implementations("startup"):
        implementation.move_to_threads()
        try:
            await attempt(plugins, implementation, {"host": host})
        except HookFailed as failure:
            raise _start_failure(implementation, failure.__cause__ or failure) from failure


async def shut_down(plugins: Plugins, host: object) -> None:
    """Call every `shutdown`, last started first. Failures are logged, and never keep the rest from closing."""
    for implementation in reversed(plugins.implementations("shutdown")):
        implementation.move_to_threads()
        try:
            await attempt(plugins, implementation, {"host": host})
        except HookFailed:
            continue


async def attempt(
    plugins: Plugins, implementation: Implementation, facts: Mapping[str, object]
) -> Any:
    """One implementation's opinion. Raises HookFailed, after logging and counting."""
    timeout_s = implementation.rule.timeout_s or plugins.timeout_s
    started = plugins.timer()
    try:
        args = [facts[name] for name in implementation.argnames]
        if implementation.workers is not None:
            thread = implementation.workers.submit(implementation.function, args)
            opinion = await _within(asyncio.wrap_future(thread), timeout_s)
        else:
            try:
                opinion = implementation.function(*args)
            except asyncio.CancelledError as error:
                raise _cancelled() from error
            finally:
                if not implementation.is_async:
                    _note_time(implementation, plugins.timer() - started)
        if opinion is not None and inspect.isawaitable(opinion):
            opinion = await _within(opinion, timeout_s)
        if opinion is not None and implementation.rule.kind is Kind.ASK:
            complaint = implementation.rule.complaint(opinion, facts)
            if complaint is not None:
                raise TypeError(complaint)
    except (asyncio.CancelledError, GeneratorExit):  # of whoever asks
        raise
    except BaseException as error:  # boundary: plugins may raise anything
        raise failed(implementation, error) from error
    finally:
        took_s = plugins.timer() - started
        implementation.stats.took(took_s)
    if plugins.trace:
        log.info(
            "hook.called hook=%s plugin=%s took_ms=%.3f answer=%s",
            implementation.hook,
            implementation.plugin,
            took_s * 1000,
            _SHORT.repr(opinion),
        )
    return opinion


def called_here(
    timer: Callable[[], float],
    implementation: Implementation,
    function: Callable[..., Any],
    *args: object,
) -> Any:
    """What a plain function returns at once: `attempt` without what most calls need nothing of. Raises HookFailed."""
    opinion, started = None, timer()
    try:
        opinion = function(*args)
    except RAISED as error:
        raise failed(implementation, error) from error
    finally:
        took_s = timer() - started
        if implementation.stats.took_is_slow(took_s, SLOW_S):
            move_away(implementation, took_s)
    return opinion


async def _heard(
    plugins: Plugins, implementation: Implementation, facts: Mapping[str, object], opinion: Any
) -> Any:
    """An opinion that is one, though it may have to be waited for. Raises HookFailed."""
    try:
        if inspect.isawaitable(opinion):
            implementation.is_async = True
            started = plugins.timer()
            try:
                timeout_s = implementation.rule.timeout_s or plugins.timeout_s
                opinion = await _within(opinion, timeout_s)
            finally:
                implementation.stats.took_longer(plugins.timer() - started)
        if opinion is not None and implementation.rule.kind is Kind.ASK:
            complaint = implementation.rule.complaint(opinion, facts)
            if complaint is not None:
                raise TypeError(complaint)
    except (asyncio.CancelledError, GeneratorExit):  # of whoever asks
        raise
    except BaseException as error:  # boundary: plugins may raise anything
        raise failed(implementation, error) from error
    return opinion


class TimedOut(Exception):
    """Told apart from a TimeoutError that a plugin raises."""


async def _within(awaitable: Awaitable[Any], timeout_s: float) -> Any:
    """Its result, or TimedOut. Left behind when it won't stop: a plugin that eats its cancellation holds up nobody."""
    is_future = isinstance(awaitable, asyncio.Future)
    task = asyncio.ensure_future(awaitable if is_future else _without_exit(awaitable))
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if not done:
            raise TimedOut(f"no answer within {timeout_s:g} s")
    finally:
        if not task.done():
            task.add_done_callback(forget)
            task.cancel()
    try:
        return task.result()
    except asyncio.CancelledError as error:
        raise _cancelled() from error


async def _without_exit(awaitable: Awaitable[Any]) -> Any:
    """A task that is left by an exit takes the loop with it."""
    try:
        return await awaitable
    except SystemExit as error:
        raise RuntimeError(f"it asked for the process's end with {error.code!r}") from error


def _cancelled() -> RuntimeError:
    """Whoever asks was not: what is no failure to asyncio would end him, or what runs him."""
    return RuntimeError("it was cancelled from within")


def forget(task: "asyncio.Future[Any]") -> None:
    """Look at the outcome that nobody waits for, so that asyncio does not complain about it."""
    if not task.cancelled():
        task.exception()


def _note_time(implementation: Implementation, took_s: float) -> None:
    """A plain function that blocks the loop is called in a thread from then on."""
    if implementation.stats.is_slow(took_s, SLOW_S):
        move_away(implementation, took_s)


def move_away(implementation: Implementation, took_s: float) -> None:
    implementation.move_to_threads()
    log.warning(
        "hook.slow hook=%s plugin=%s took_ms=%.1f limit_ms=%g why=%s",
        implementation.hook,
        implementation.plugin,
        took_s * 1000,
        SLOW_S * 1000,
        "blocks_the_loop",
    )


def note_failure(implementation: Implementation, error: BaseException) -> None:
    """One line each time; the first comes with its traceback, which is for the plugin's author. Raises the error if it
    is no plugin's."""
    if isinstance(error, KeyboardInterrupt):
        raise error
    stats = implementation.stats
    is_first = stats.errors + stats.timeouts == 0
    if isinstance(error, TimedOut):
        stats.timeouts += 1
    else:
        stats.errors += 1
    log.warning(
        "hook.failed hook=%s plugin=%s error=%s",
        implementation.hook,
        implementation.plugin,
        _said(error),
        exc_info=error if is_first else None,
    )


def _refusal(kind: type[LlmhostError], implementation: Implementation) -> LlmhostError:
    return kind(
        f"The plugin {implementation.plugin!r}, which this server asks before it goes on ({implementation.hook}),"
        " failed. Try again; if it stays like this, tell whoever runs the server."
    )


def _start_failure(implementation: Implementation, error: BaseException) -> ConfigError:
    return ConfigError(
        f"Plugin {implementation.plugin!r} failed in {implementation.hook}: {_said(error)}"
    )


def _said(error: BaseException) -> str:
    """On one line and not long, whatever the plugin wrote."""
    try:
        text = " ".join(str(error).split())[:300]
    except Exception as worse:  # noqa: BLE001 - boundary: as it was raised by a plugin
        text = f"its text can't be read ({type(worse).__name__})"
    return f"{type(error).__name__}: {text}"
