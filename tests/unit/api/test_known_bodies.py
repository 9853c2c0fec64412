"""Bodies that come again are read once, and nothing of one request is in another."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.api.test_repeats import ON, Asked, chat, node

from llmhost.api.known_bodies import LARGEST_BYTES, MOST_SEEN, KnownBodies
from llmhost.api.openai import parse_chat
from llmhost.core.caller import LOCAL_CALLER, Caller
from llmhost.core.ports import Marks
from llmhost.core.request import GenerationRequest
from llmhost.safety.policy import PolicyBody
from llmhost.testing import TestHost
from llmhost.text.words import WordTokenizer

OTHER = Caller("k", "acme", "t")


def read(known: KnownBodies, raw: bytes, name: str, caller: Caller = LOCAL_CALLER):
    """As the route does it, and whether it was known."""
    key = known.key(caller, raw)
    assert key is not None
    found = known.get(key, name, None)
    if found is not None:
        return found[0], True
    request, beside = parse_chat(raw, name, None)
    known.put(key, raw, request, beside)
    return request, False


@given(st.text(min_size=1, max_size=40), st.integers(1, 9), st.booleans())
def test_a_body_that_comes_again_is_the_same_request_under_another_id(text, most, stream):
    raw, known = json.dumps(chat(text, max_tokens=most, stream=stream)).encode(), KnownBodies()
    seen = [read(known, raw, f"req_{number}") for number in range(4)]
    assert [is_known for _, is_known in seen] == [False, False, True, True]
    for number, (request, _) in enumerate(seen):
        assert request == parse_chat(raw, f"req_{number}", None)[0]


def test_what_one_has_sent_is_not_known_of_another():
    raw, known = json.dumps(chat()).encode(), KnownBodies()
    for number in range(3):
        read(known, raw, f"req_{number}")
    assert not read(known, raw, "req_x", OTHER)[1]


def test_what_is_kept_has_an_end():
    known = KnownBodies()
    assert known.key(LOCAL_CALLER, b"x" * (LARGEST_BYTES + 1)) is None
    for number in range(MOST_SEEN + 9):
        read(known, json.dumps(chat(str(number))).encode(), "req_x")
    assert len(known) == 0 and len(known._seen) == MOST_SEEN


def test_notes_are_shared_by_those_that_come_again_and_by_no_copy():
    first = parse_chat(json.dumps(chat()).encode(), "req_1", None)[0]
    first.note("a", 1)
    assert first.noted("a") is None  # nobody said that it may come again
    first.take_notes()
    second: GenerationRequest = first.again("req_2", "mine")
    second.note("a", 1)
    second.let_be_held()
    assert first.noted("a") == 1
    assert (second.request_id, second.client_request_id) == ("req_2", "mine")
    assert (first.request_id, first.can_be_held) == ("req_1", False)


async def said(host: TestHost, text: str) -> list[str]:
    asked = Asked(chat(text), headers={})
    answers = [await asked.of(host) for _ in range(4)]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 4
    return [answer.said["body"] for answer in answers]


async def test_requests_that_repeat_are_answered_and_judged_like_the_first():
    async with node() as host:
        assert len(set(await said(host, "hello world"))) == 1
        for text in ("a forbidden word", "mail a@b.example"):
            assert len(set(await said(host, text))) == 1
        decided = host.host.metrics.render().decode()
        assert 'decisions_total{action="block",category="words",direction="input"} 4.0' in decided
        assert 'decisions_total{action="redact",category="pii",direction="input"} 4.0' in decided


async def test_a_new_policy_judges_what_was_known_to_have_nothing_in_it():
    async with node() as host:
        key = await host.make_key()
        asked = Asked(chat(), key, {})
        assert [(await asked.of(host)).status for _ in range(4)] == [200] * 4
        body = PolicyBody(words=("hello",))
        await host.host.policies.create("acme", body, who="test", activate=True)
        assert (await asked.of(host)).status == 400


@pytest.mark.parametrize("headers", [{}, ON])
async def test_a_date_that_the_template_tells_is_today_s(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
):
    day = ["monday"]
    plain = WordTokenizer.render_chat

    def render_chat(self, messages, **kwargs):
        return f"{day[0]} {plain(self, messages, **kwargs)}"

    monkeypatch.setattr(WordTokenizer, "render_chat", render_chat)
    monkeypatch.setattr(WordTokenizer, "marks", Marks(moment=lambda: day[0]))
    async with node() as host:
        asked = Asked(chat(), headers=headers)
        monday = [(await asked.of(host)).said["body"] for _ in range(4)]
        day[0] = "tuesday morning"
        tuesday = await asked.of(host)
        again = await asked.of(host)
        assert len(set(monday[1:])) == 1
        assert tuesday.cache != "hit"
        assert (
            json.loads(tuesday.body)["usage"]["prompt_tokens"]
            == 1 + (json.loads(monday[0])["usage"]["prompt_tokens"])
        )
        assert json.loads(again.body)["choices"] == json.loads(tuesday.body)["choices"]
