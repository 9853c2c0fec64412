"""Asking plugins that answer at once, from where nobody can wait: for one request, or for several one after the other.

Whoever has to be waited for is not asked here; `hooks.call` does that.
"""

import asyncio
import inspect
from collections.abc import Callable, Iterable, Sequence

from llmhost.hooks.call import (
    RAISED,
    SLOW_S,
    Answer,
    HookFailed,
    failed,
    forget,
    meaning,
    move_away,
    note_failure,
)
from llmhost.hooks.check import hook_arguments
from llmhost.hooks.registry import Implementation, Plugins


class NotNow(Exception):
    """Somebody has to be waited for, or failed: `ask` deals with that."""


def ask_now(plugins: Plugins, hook: str, *facts: object) -> Answer | None:
    """As `ask`, of plugins that answer at once; `facts` are all of the hook's, in its order. Raises NotNow, and then
    has to be asked again."""
    timer = plugins.timer
    for implementation in plugins.lists.get(hook, ()):
        if implementation.is_async or implementation.workers is not None or plugins.trace:
            raise NotNow
        started = timer()
        try:
            opinion = implementation.given(facts)
        except RAISED as error:
            note_failure(implementation, error)
            raise NotNow from None
        finally:
            took_s = timer() - started
            if implementation.stats.took_is_slow(took_s, SLOW_S):
                move_away(implementation, took_s)
        if opinion is not None:
            try:
                return _answer_now(implementation, facts, opinion)
            except HookFailed:
                raise NotNow from None
    return None


def ask_each_now(
    plugins: Plugins, hook: str, all_facts: Iterable[Sequence[object]], *, once: bool = False
) -> list[Answer | NotNow | None]:
    """`ask_now` with the facts of one after the other, or `ask_once`: what it would return for each, or that it would
    raise NotNow.

    The next facts are looked at when those before have been asked about. Of one implementation the clock is read once
    between two calls.
    """
    implementations = plugins.lists.get(hook, ())
    if len(implementations) != 1:
        ask_one = ask_once if once else ask_now
        return [_asked(ask_one, plugins, hook, facts) for facts in all_facts]
    (implementation,) = implementations
    timer, given, stats = plugins.timer, implementation.given, implementation.stats
    said: list[Answer | NotNow | None] = []
    taken_s: list[float] = []
    began_s = timer()
    for facts in all_facts:
        if implementation.is_async or implementation.workers is not None or plugins.trace:
            said.append(NotNow())
            continue
        try:
            opinion = given(facts)
            answer = None if opinion is None else _answer_now(implementation, facts, opinion)
        except NotNow as later:
            said.append(later)
        except HookFailed as failure:
            said.append(meaning(implementation, failure) if once else NotNow())
        except RAISED as error:
            noted = failed(implementation, error)
            said.append(meaning(implementation, noted) if once else NotNow())
        else:
            said.append(answer)
        ended_s = timer()
        taken_s.append(ended_s - began_s)
        if taken_s[-1] > SLOW_S:  # only such a call can make the average longer than that
            if stats.took_all_is_slow(taken_s, SLOW_S):
                move_away(implementation, taken_s[-1])
            taken_s = []
        began_s = ended_s
    stats.took_all_is_slow(taken_s, SLOW_S)
    return said


def _asked(
    ask_one: Callable[..., Answer | None], plugins: Plugins, hook: str, facts: Sequence[object]
) -> Answer | NotNow | None:
    try:
        return ask_one(plugins, hook, *facts)
    except NotNow as later:
        return later


def ask_once(plugins: Plugins, hook: str, *facts: object) -> Answer | None:
    """As `ask_now`, and what a failure means is what `ask` says. Raises NotNow, and nobody was asked then, but a plain
    function that handed out something to wait for: which that is, is known the next time."""
    implementations = plugins.lists.get(hook, ())
    for implementation in implementations:
        if implementation.is_async or implementation.workers is not None or plugins.trace:
            raise NotNow
    timer = plugins.timer
    for implementation in implementations:
        opinion, failure, started = None, None, timer()
        try:
            opinion = implementation.given(facts)
        except RAISED as error:
            failure = failed(implementation, error)
        took_s = timer() - started
        if implementation.stats.took_is_slow(took_s, SLOW_S):
            move_away(implementation, took_s)
        if opinion is not None:
            try:
                return _answer_now(implementation, facts, opinion)
            except HookFailed as error:
                failure = error
        if failure is not None and (assumed := meaning(implementation, failure)) is not None:
            return assumed
    return None


def _answer_now(implementation: Implementation, facts: Sequence[object], opinion: object) -> Answer:
    """An opinion that is one. Raises NotNow where it has to be waited for, and HookFailed where it is none."""
    if inspect.isawaitable(opinion):
        implementation.is_async = True
        if inspect.iscoroutine(opinion):
            opinion.close()
        elif isinstance(opinion, asyncio.Future):
            opinion.add_done_callback(forget)
            opinion.cancel()
        raise NotNow
    named = dict(zip(hook_arguments(implementation.hook), facts, strict=False))
    if (complaint := implementation.rule.complaint(opinion, named)) is not None:
        raise failed(implementation, TypeError(complaint))
    return Answer(implementation.plugin, opinion)
