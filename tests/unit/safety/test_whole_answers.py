"""An answer that is all there is judged as one that comes in pieces."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmhost import Refusal, hookimpl
from llmhost.config.schema.safety import SafetySettings
from llmhost.core.caller import LOCAL_CALLER
from llmhost.core.request import GenerationRequest, Kind
from llmhost.hooks.registry import Plugins
from llmhost.safety.output import OutputScreen, pass_all
from llmhost.safety.screen import Screen
from llmhost.safety.verdict import Screening

REQUEST = GenerationRequest(request_id="req_1", kind=Kind.COMPLETION, model="m", prompts=("hi",))
SETTINGS = SafetySettings(
    blocked_words=("bad",), redact=("pii.email",), warn=("pii.iban",), blocked_patterns=(r"\d{4}",)
)
pieces = st.lists(
    st.sampled_from(
        ("b", "bad", "ad", " ", "fine", "never", "a@b.example", "DE89370400440532013000", "12", "")
    )
    | st.text(max_size=3),
    max_size=8,
)


class Judge:
    """Has something against one word, and fails over another."""

    @hookimpl
    def check_output(self, text: str) -> Refusal | None:
        if "fails" in text:
            raise ValueError
        return Refusal("no") if "never" in text else None


class Written:
    """What a journal was told."""

    def __init__(self, *, each: bool) -> None:
        self._each = each
        self.told: list[object] = []

    def count(self, caller: Any, direction: Any, policy: str, at_ns: int, texts: int = 1) -> bool:
        if not self._each:
            self.told += [(direction, policy)] * texts
        return not self._each

    def record(self, screening: Screening) -> None:
        decision = screening.decision
        self.told.append((screening.direction, decision.action, decision.policy, decision.finding))
        self.told.append(screening.findings)


def ended(way: Any, parts: list[str], *, each: bool) -> tuple[object, ...]:
    """All that can be seen of an answer."""
    journal, noted = Written(each=each), []
    screen = Screen(SETTINGS, Plugins.of(Judge()), journal=journal, utc_ns=lambda: 1)  # type: ignore[arg-type]
    asker = SimpleNamespace(model="m", note_screening=noted.append)
    output = screen.watch_output(REQUEST, LOCAL_CALLER, asker)
    assert output is not None
    said = asyncio.run(way(output, parts))
    return said, output.is_refused, output.refused_by, output.take_cuts(), journal.told, noted


async def in_pieces(output: OutputScreen, parts: list[str]) -> str:
    said = "".join([await output.push(part) for part in parts])
    return said + await output.finish()


async def at_once(output: OutputScreen, parts: list[str]) -> str:
    whole = "".join(parts)
    passed = output.pass_whole(whole)
    return await in_pieces(output, [whole]) if passed is None else passed


async def at_its_end(output: OutputScreen, parts: list[str]) -> str:
    *first, last = parts or [""]
    for part in first:
        assert output.hold(part)
    passed = output.pass_whole(last)
    return await in_pieces(output, [last]) if passed is None else passed


@given(pieces, st.booleans())
def test_a_whole_answer_is_judged_and_written_down_as_one_in_pieces(parts: list[str], each: bool):
    seen = [ended(way, parts, each=each) for way in (in_pieces, at_once, at_its_end)]

    assert seen[1] == seen[0]
    assert seen[2] == seen[0]


@given(st.lists(st.tuples(pieces, st.booleans()), max_size=5), st.booleans())
def test_whole_answers_are_judged_together_as_one_by_one(
    answers: list[tuple[list[str], bool]], each: bool
) -> None:
    seen: list[object] = []
    for are_together in (True, False):
        journal = Written(each=each)
        screen = Screen(SETTINGS, Plugins.of(Judge()), journal=journal, utc_ns=lambda: 1)  # type: ignore[arg-type]
        callers = [LOCAL_CALLER, replace(LOCAL_CALLER, org="another")]
        watched = [screen.watch_output(REQUEST, callers[is_other]) for _, is_other in answers]
        ends = [
            (one, "".join(parts)) for one, (parts, _) in zip(watched, answers, strict=True) if one
        ]
        passed = pass_all(ends) if are_together else [one.pass_whole(text) for one, text in ends]
        told = sorted(map(repr, journal.told))
        seen.append((passed, told, [one.is_refused for one, _ in ends]))

    assert seen[0] == seen[1]


def test_an_answer_that_a_plugin_fails_over_is_refused_either_way():
    seen = [ended(way, ["it ", "fails"], each=False) for way in (in_pieces, at_once, at_its_end)]

    assert seen[1] == seen[0] == seen[2]
    assert seen[0][1:3] == (True, "plugin:Judge")


def test_what_one_answer_was_told_is_no_other_ones():
    screen = Screen(
        SETTINGS, Plugins.of(SimpleNamespace(__name__="p", check_output=hookimpl(lambda: None)))
    )
    first, second = (screen.watch_output(REQUEST, LOCAL_CALLER) for _ in range(2))
    assert first is not None and second is not None

    assert asyncio.run(in_pieces(first, ["a@b.example and DE89370400440532013000 and bad"])) == ""
    assert asyncio.run(at_once(second, ["fine"])) == "fine"
    assert (first.is_refused, second.is_refused) == (True, False)
