"""The stage as the pipeline uses it: rules, then plugins, in and out."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from llmhost import Refusal, hookimpl
from llmhost.config.schema.safety import SafetySettings
from llmhost.core.caller import LOCAL_CALLER
from llmhost.core.errors import (
    BadRequest,
    ConfigError,
    ContentRefused,
    InvalidValue,
    SafetyUnavailable,
)
from llmhost.core.request import GenerationRequest, Kind
from llmhost.hooks.registry import Plugins
from llmhost.safety.defaults import NodePolicy, SamePolicy
from llmhost.safety.output import OutputScreen
from llmhost.safety.policy import OrgPolicy, PolicyBody
from llmhost.safety.screen import Screen
from llmhost.safety.verdict import Screening


def chat(*texts: object) -> GenerationRequest:
    messages = tuple({"role": "user", "content": text} for text in texts)
    return GenerationRequest(request_id="req_1", kind=Kind.CHAT, model="m", messages=messages)


def said(**facts):
    return {"role": "assistant", "content": None, **facts}


def call(**function):
    return {"id": "call_1", "type": "function", "function": {"name": "f", **function}}


def completion(*prompts: str | tuple[int, ...]) -> GenerationRequest:
    return GenerationRequest(request_id="req_1", kind=Kind.COMPLETION, model="m", prompts=prompts)


def screen(*plugins: object, timeout_s: float = 2.0, **settings: object) -> Screen:
    return Screen(SafetySettings(**settings), Plugins.of(*plugins, timeout_s=timeout_s))


def plugin(**functions) -> SimpleNamespace:
    marked = {name: hookimpl(function) for name, function in functions.items()}
    return SimpleNamespace(__name__="guard", **marked)


def watched(screen: Screen) -> OutputScreen:
    output = screen.watch_output(chat("hi"), LOCAL_CALLER)
    assert output is not None
    return output


async def test_without_rules_and_plugins_everything_passes_and_nothing_is_watched():
    free = screen()

    await free.check_input(chat("anything"), LOCAL_CALLER)
    await free.check_input(completion((1, 2)), LOCAL_CALLER)

    assert free.watch_output(chat("hi"), LOCAL_CALLER) is None


async def test_a_blocked_word_in_any_message_refuses_the_prompt(caplog):
    caplog.set_level("INFO", "llmhost.safety")
    strict = screen(blocked_words=("fine", "bad"))
    parts = [{"type": "text", "text": "so ba"}, {"type": "text", "text": "d"}]

    with pytest.raises(ContentRefused, match=r"blocked_words\[1\]") as caught:
        await strict.check_input(chat("hello", parts), LOCAL_CALLER)

    assert (caught.value.status, caught.value.param) == (400, "messages")
    assert caplog.messages == [
        "safety.refused where=input request=req_1 why=blocked_words[1] policy=default@1"
    ]


HIDDEN = {
    "name": {"messages": ({"role": "user", "content": "hi", "name": "bad"},)},
    "function": {"messages": (said(tool_calls=[call(name="bad")]),)},
    "arguments": {"messages": (said(tool_calls=[call(), call(arguments='{"q": "so bad"}')]),)},
    "escaped arguments": {"messages": (said(tool_calls=[call(arguments='{"q": "b\\u0061d"}')]),)},
    "arguments after a newline": {
        "messages": (said(tool_calls=[call(arguments='{"q": "\\nbad"}')]),)
    },
    "broken arguments": {"messages": (said(tool_calls=[call(arguments='{"q": "\\n bad')]),)},
    "arguments as a table": {"messages": (said(tool_calls=[call(arguments={"bad": [1]})]),)},
    "template variables": {"template_kwargs": {"on": True, "docs": [{"title": {"x": "bad"}}]}},
}


@pytest.mark.parametrize("place", HIDDEN)
async def test_a_blocked_word_is_found_wherever_it_can_reach_the_prompt(place):
    seen = []
    request = replace(chat("hello"), **HIDDEN[place])

    def check_input(request): seen.append(request.text)  # fmt: skip

    await screen(plugin(check_input=check_input)).check_input(request, LOCAL_CALLER)
    with pytest.raises(ContentRefused):
        await screen(blocked_words=("bad",)).check_input(request, LOCAL_CALLER)

    assert "bad" in seen[0]


async def test_nesting_without_end_is_read_to_its_end():
    value = "bad"
    for _ in range(10_000):
        value = [value]
    request = replace(chat("hello"), template_kwargs={"deep": value})

    with pytest.raises(ContentRefused):
        await screen(blocked_words=("bad",)).check_input(request, LOCAL_CALLER)


async def test_each_message_is_judged_by_itself():
    strict = screen(blocked_patterns=("^ignore", "a b"))

    await strict.check_input(chat("do not ignore", "a", " b"), LOCAL_CALLER)
    with pytest.raises(ContentRefused):
        await strict.check_input(chat("hello", "ignore that"), LOCAL_CALLER)


async def test_completions_are_judged_too():
    with pytest.raises(ContentRefused) as caught:
        await screen(blocked_words=("bad",)).check_input(completion("ok", "bad"), LOCAL_CALLER)

    assert caught.value.param == "prompt"


async def test_token_ids_are_read_or_refused_and_never_waved_through():
    strict = screen(blocked_words=("bad",))

    with pytest.raises(BadRequest, match="token ids"):
        await strict.check_input(completion((1, 2)), LOCAL_CALLER)
    with pytest.raises(ContentRefused):
        await strict.check_input(completion((1,)), LOCAL_CALLER, decode=lambda ids: "bad")
    await strict.check_input(completion((1,), "x"), LOCAL_CALLER, decode=lambda ids: "good")


async def test_plugins_see_token_ids_as_text():
    seen = []

    def check_input(request): seen.append(request.text)  # fmt: skip

    await screen(plugin(check_input=check_input)).check_input(
        completion((1,)), LOCAL_CALLER, decode=lambda ids: "text"
    )

    assert seen == ["text"]


def test_too_long_a_prompt_is_refused_with_the_limit():
    short = screen(max_prompt_chars=5)
    with pytest.raises(InvalidValue, match="is 6 characters; this server takes 5"):
        short.check_length(completion("abcdef"))
    with pytest.raises(InvalidValue, match="is 6 token ids; this server takes 5"):
        short.check_length(completion((1, 2, 3), (1, 2, 3)))
    with pytest.raises(InvalidValue, match="is 11 characters; this server takes 5"):
        short.check_length(replace(chat("a"), template_kwargs={"docs": ["abcd"]}))

    short.check_length(completion("abcde"))


async def test_a_plugins_refusal_has_its_own_words_and_code(caplog):
    caplog.set_level("INFO", "llmhost.safety")

    async def check_input(request, caller):
        return Refusal(f"Not for {caller.org}.", "not_for_you")

    with pytest.raises(ContentRefused, match="Not for local") as caught:
        await screen(plugin(check_input=check_input)).check_input(chat("hi"), LOCAL_CALLER)

    assert caught.value.code == "not_for_you"
    assert caplog.messages == [
        "safety.refused where=input request=req_1 why=plugin:guard policy=default@1"
    ]


async def test_plugins_are_not_asked_about_what_a_rule_refuses():
    def check_input(): raise AssertionError  # fmt: skip

    with pytest.raises(ContentRefused):
        await screen(plugin(check_input=check_input), blocked_words=("bad",)).check_input(
            chat("bad"), LOCAL_CALLER
        )


async def test_a_failed_plugin_refuses_the_prompt():
    def check_input(): raise ValueError  # fmt: skip

    with pytest.raises(SafetyUnavailable):
        await screen(plugin(check_input=check_input)).check_input(chat("hi"), LOCAL_CALLER)


async def test_others_get_their_turn_while_a_long_prompt_is_judged():
    turns = []

    async def other():
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    others = asyncio.create_task(other())
    await screen(blocked_words=("bad",)).check_input(chat("word " * 10_000), LOCAL_CALLER)
    others.cancel()

    assert len(turns) > 10


async def test_text_is_held_back_until_it_is_judged_and_then_all_of_it_comes():
    output = watched(screen(blocked_words=("bad",), window_chars=16))
    text = "it was the best of times, it was the worst of times"

    released = [await output.push(char) for char in text]
    held = released.index(next(filter(None, released)))
    released.append(await output.finish())

    assert held == 15
    assert "".join(released) == text
    assert not output.is_refused


async def test_a_blocked_word_ends_the_answer_before_any_of_it_is_out(caplog):
    caplog.set_level("INFO", "llmhost.safety")
    output = watched(screen(blocked_words=("bad",), window_chars=16))

    released = "".join(
        [await output.push(char) for char in "this is going to be so bad, really bad"]
    )
    released += await output.push("more") + await output.finish()

    assert "this is going to be so ".startswith(released)
    assert output.refused_by == "blocked_words[0]"
    assert output.is_refused
    assert caplog.messages == [
        "safety.refused where=output request=req_1 why=blocked_words[0] policy=default@1"
    ]


async def test_a_blocked_word_at_the_very_end_is_caught():
    output = watched(screen(blocked_words=("bad",)))

    assert await output.push("so bad") == ""
    assert await output.finish() == ""
    assert output.is_refused


async def test_plugins_judge_windows_of_whole_words():
    seen = []

    async def check_output(text, request, caller):
        seen.append(text)

    output = watched(screen(plugin(check_output=check_output), window_chars=64))
    text = (
        "Words are seen whole, however they are cut into tokens on their way out of the model. " * 3
    )
    released = "".join([await output.push(text[i : i + 3]) for i in range(0, len(text), 3)])
    released += await output.finish()

    assert released == text
    assert set(" ".join(seen).split()) == set(text.split())


async def test_a_plugin_ends_an_answer():
    def check_output(text):
        return Refusal("No.") if "secret" in text else None

    output = watched(screen(plugin(check_output=check_output), window_chars=16))
    released = await output.push("a long and harmless introduction to the ")
    released += await output.push("secret that nobody should read")

    assert "secret" not in released
    assert output.refused_by == "plugin:guard"


async def test_a_plugin_that_never_answers_ends_an_answer():
    async def check_output(): await asyncio.Event().wait()  # fmt: skip

    output = watched(screen(plugin(check_output=check_output), timeout_s=0.01))
    await output.push("short")

    assert await output.finish() == ""
    assert output.refused_by == "plugin:guard"


async def test_rules_can_be_kept_to_prompts_and_plugins_still_judge_answers():
    rules = {"blocked_words": ("bad",), "check_output": False}
    assert screen(**rules).watch_output(chat("hi"), LOCAL_CALLER) is None

    output = watched(screen(plugin(check_output=lambda text: None), **rules))

    assert await output.push("bad") + await output.finish() == "bad"


async def test_an_empty_answer_needs_no_verdict():
    output = watched(screen(blocked_words=("bad",)))

    assert await output.push("") + await output.finish() == ""
    assert not output.is_refused


def test_a_broken_rule_fails_start_up():
    with pytest.raises(ConfigError):
        screen(blocked_patterns=("(",))


def journal_of(noted: list[Screening], failure: Exception | None = None) -> Any:
    """Has no room for prompts where there is a failure."""

    async def make_room(_: Screening) -> None:
        if failure is not None:
            raise failure

    return SimpleNamespace(record=noted.append, count=lambda *_: False, make_room=make_room)


@pytest.mark.parametrize("fails_open", [True, False])
async def test_a_prompt_that_cant_be_kept_is_refused_unless_the_policy_says_otherwise(fails_open):
    noted: list[Screening] = []
    journal = journal_of(noted, SafetyUnavailable("full"))
    settings = SafetySettings(keep_prompts="all", keep_fails_open=not fails_open)
    body = PolicyBody(keep_fails_open=fails_open)
    own = SamePolicy(OrgPolicy("acme", 1, body, NodePolicy(settings)))
    judging = Screen(settings, Plugins(), policies=own, journal=journal)
    if fails_open:
        await judging.check_input(chat("hello"), LOCAL_CALLER)
    else:
        with pytest.raises(SafetyUnavailable):
            await judging.check_input(chat("hello"), LOCAL_CALLER)
    assert len(noted) == fails_open


async def test_a_policy_has_prompts_kept_as_they_run_and_windows_of_its_own():
    noted: list[Screening] = []
    journal = journal_of(noted)
    settings = SafetySettings(redact=("pii.card",), keep_prompts="found", window_chars=64)
    judging = Screen(
        settings, Plugins(), policies=SamePolicy(NodePolicy(settings)), journal=journal
    )

    await judging.check_input(chat("my card is 4111 1111 1111 1111"), LOCAL_CALLER)
    await judging.check_input(chat("hello"), LOCAL_CALLER)
    assert [one.prompt for one in noted] == ["my card is [card]", None]

    body = PolicyBody(keep_prompts="all", prompt_days=3, words=("x",), window_chars=4096)
    own = SamePolicy(OrgPolicy("acme", 1, body, NodePolicy()))
    judging = Screen(SafetySettings(), Plugins(), policies=own, journal=journal)
    await judging.check_input(chat("hello"), LOCAL_CALLER)
    assert (noted[-1].prompt, noted[-1].prompt_days) == ("hello", 3)
    watching = watched(judging)
    assert watching.hold("y" * 4000) and not watching.hold("y" * 100)


async def test_all_prompts_are_kept_though_nothing_judges_them():
    noted: list[Screening] = []
    journal = journal_of(noted)
    settings = SafetySettings(keep_prompts="all")
    judging = Screen(settings, Plugins(), journal=journal)
    await judging.check_input(chat("hello"), LOCAL_CALLER)
    assert [one.prompt for one in noted] == ["hello"]
