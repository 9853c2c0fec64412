"""Bodies at random, near one mould and within it: both ways answer each of them alike, and write down the same."""

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.api.test_moulded_streams import said, streamed
from tests.unit.api.test_moulds import Listening, alike
from tests.unit.api.test_repeated_runs import CHECKED, settled
from tests.unit.api.test_repeats import node, rows
from tests.unit.host.test_shortcut import Client

from llmhost.testing import TestHost

TEXTS = st.sampled_from(
    [
        *("a", "b c", "", "\x00", "é", "forbidden", "forb\u0131dden", "a@b.example", "unwelcome"),
        *("DE89370400440532013000", "unheard", '","messages":[', "w " * 300, "x" * 5_000),
    ]
)
ROLES = st.sampled_from(["user", "user", "user", "system", "developer", "assistant", "tool"])
PARTS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "text", "input_text", "refusal", "image_url"])},
        optional={"text": TEXTS, "refusal": TEXTS, "cache_control": st.just({"type": "ephemeral"})},
    ),
    max_size=2,
)
MESSAGES = st.fixed_dictionaries(
    {"role": ROLES | st.sampled_from(["nobody", None]), "content": TEXTS | TEXTS | PARTS},
    optional={"name": st.sampled_from(["n", None, 5]), "unknown": st.just([{"messages": []}])},
)
BARE = st.fixed_dictionaries({"role": ROLES, "content": TEXTS})
WORDS = st.lists(BARE, min_size=1, max_size=2) | st.lists(MESSAGES, max_size=3)
WRITTEN = WORDS.map(json.dumps) | st.sampled_from(
    [
        *("null", "5", "{}", "[null]", '[{"role":"user","content":"a","content":"forbidden"}]'),
        *('[{"role":"user","content":"\\ud83d"}]', '[{"role":"user","c\\u006fntent":"b"}]'),
        *('[ {"role":"user","content":NaN}]', '[{"role":"user","content":"a"}],"messages":[]'),
        *('[{"role":"user","content":"a","u":1e999}]', '[{"role":"user","content":"a"},]'),
    ]
)
AROUND = st.fixed_dictionaries(
    {"max_tokens": st.sampled_from([1, 6])},
    optional={
        "stream": st.just(True),
        "user": st.just('"messages":['),
        "stop": st.just(["a", "]"]),
        "truncate_prompt_tokens": st.sampled_from([1, 3]),
        "min_tokens": st.just(1),
        "continue_final_message": st.just(True),
        "skip_special_tokens": st.just(False),
        "echo": st.booleans(),
        "metadata": st.just({"messages": "[]"}),
    },
)
BEFORE = st.sampled_from(
    ["", "", "", "", '"messages":[],', '"copy":[{"role":"user","content":"a"}],', "\ufeff"]
)
SERIES = st.tuples(AROUND, BEFORE, st.booleans(), st.lists(WRITTEN, min_size=3, max_size=6))


def raw(around: dict[str, Any], before: str, words: str) -> bytes:
    fields = json.dumps({"model": "fake", "temperature": 1, "seed": 7, **around})[1:]
    body = f'{{{before}"messages":{words},{fields}'.encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b"
        % (
            len(body),
            body,
        )
    )


async def told(host: TestHost, all_series: Any) -> list[Any]:
    answers = []
    for around, before, is_whole, words in all_series:
        client = Client(host)
        first = ('[{"role":"user","content":"one"}]', '[{"role":"user","content":"and another"}]')
        for data in (raw(around, before, each) for each in (*first, *words)):
            answers.append(
                said(await client.ask(*([data] if is_whole else [data[:40], data[40:]])))
            )
            await settled(host)
    last = raw({"max_tokens": 1}, "", '[{"role":"user","content":"the last"}]')
    answers.append(said(await Client(host).ask(last)))  # which waits for all entries before it
    await settled(host)
    return answers


async def both(all_series: Any) -> int:
    """How many took the short way."""
    seen = []
    for is_on in (True, False):
        async with node(Listening(), settings=CHECKED) as host:
            host.host.repeats.is_on = is_on
            seen.append((await told(host, all_series), rows(host)))
            if is_on:
                count = alike(host) + streamed(host)
    (answers, written), (answers_long, written_long) = seen
    for one, other in zip(answers, answers_long, strict=True):
        assert one == other
    assert written == written_long
    return count


@given(st.lists(SERIES, min_size=2, max_size=3))
@settings(max_examples=10)
def test_both_ways_answer_bodies_at_random_alike(all_series: Any) -> None:
    asyncio.run(both(all_series))


def test_of_those_within_a_mould_some_take_the_short_way() -> None:
    words = ['[{"role":"user","content":"c"}]', '[{"role":"system","content":"d"}]']
    series: Any = [
        ({"max_tokens": 6, "stream": stream}, "", True, words) for stream in (False, True)
    ]
    assert asyncio.run(both(series)) == 4
