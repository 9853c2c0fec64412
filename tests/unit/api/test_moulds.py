"""Requests that differ in what they say alone: read as the whole body is, and both ways say the same of them."""

import asyncio
import json
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.api.test_repeated_runs import CHANGES, CHECKED, plain, run, settled, short
from tests.unit.api.test_repeats import Answer, Asked, Plugin, audited, node, rows
from tests.unit.host.test_shortcut import Client, raw
from tests.unit.pipeline.node import Held, until

from llmhost.api.moulds import Words, cast_of, words_of
from llmhost.api.openai import parse_chat, parse_completion
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.safety import SafetySettings
from llmhost.config.schema.server import ServerSettings
from llmhost.core.attached import mark_of
from llmhost.core.caller import Limits
from llmhost.core.errors import LlmhostError
from llmhost.core.ports import Marks
from llmhost.core.request import GenerationRequest
from llmhost.hooks.spec import Refusal, hookimpl
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import Period
from llmhost.testing import FAKE_MODEL, TestHost, fake_chat_words
from llmhost.text.words import WordTokenizer

BEGUN = blake2b(b"here", key=b"key", digest_size=16)
FILE = [{"type": "file", "file": {"file_id": "file-1"}}]
CALL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def alike(host: TestHost) -> int:
    return host.host.repeats.ran_alike


def bytes_of(body: bytes, path: str = "/v1/chat/completions", head: str = "") -> bytes:
    lines = f"POST {path} HTTP/1.1\r\nhost: here\r\n{head}Content-Length: {len(body)}\r\n\r\n"
    return lines.encode() + body


def read(body: bytes, *, is_chat: bool = True) -> GenerationRequest:
    """As the route does."""
    return (parse_chat if is_chat else parse_completion)(body, "req_1", None)[0]


def words_from(body: bytes, *, is_chat: bool = True) -> tuple[bytes, Words] | None:
    """What is learnt of a body, and its key."""
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    cast = cast_of(BEGUN, bytes_of(body, path))
    if cast is None or (words := words_of(cast, read(body, is_chat=is_chat))) is None:
        return None
    return cast.key, words


def test_a_head_that_nobody_needs_so_long_is_not_taken_apart() -> None:
    """It comes before any key has been looked at."""
    body = json.dumps(
        {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
    ).encode()
    whole = bytes_of(body, "/v1/chat/completions")
    head, _, rest = whole.partition(b"\r\n\r\n")
    for count, is_cast in ((10, True), (100, False)):
        more = b"".join(b"\r\nx-b3-traceid-%d: %s" % (at, b"0" * 30) for at in range(count))
        assert (cast_of(BEGUN, head + more + b"\r\n\r\n" + rest) is not None) is is_cast


# ------------------------------------------------------------ read as the route reads


texts = st.text(max_size=12) | st.sampled_from(
    ['","messages":[', '"messages":', "]}", "\\", "\ud7ff\x00", "é", mark_of("file-1", "x")]
)
contents = (
    texts
    | st.lists(st.builds(lambda text: {"type": "text", "text": text}, texts), max_size=2)
    | st.sampled_from(
        [None, FILE, 5, [{"type": "image_url"}], [{"type": "refusal", "refusal": "n"}]]
    )
)
roles = st.sampled_from(["user", "user", "system", "assistant", "developer", "tool", "nobody"])
extras = st.sampled_from(
    [
        *({}, {}, {}, {"name": "n"}, {"tool_calls": CALL}, {"tool_calls": None}, {"other": [1]}),
        *({"refusal": "no"}, {"reasoning": "r"}, {"function_call": {"name": "f"}}),
    ]
)
messages = st.lists(
    st.builds(
        lambda role, content, more: {"role": role, "content": content, **more},
        roles,
        contents,
        extras,
    ),
    max_size=3,
) | st.sampled_from([None, 5, "text", {}])
fields = st.fixed_dictionaries(
    {"model": st.sampled_from(["fake", "messages", "a]"])},
    optional={
        "temperature": st.sampled_from([0, 1, 0.5]),
        "max_tokens": st.integers(1, 9),
        "stop": st.sampled_from(["x", ["]", '"messages":[]']]),
        "user": texts,
        "metadata": st.just({"messages": "[]", "prompt": "p"}),
        "stream": st.booleans(),
        "echo": st.booleans(),
        "unknown": st.just({"messages": [{"role": "user", "content": "deep"}]}),
        "documents": st.just([{"text": "d"}]),
        "continue_final_message": st.booleans(),
        "add_generation_prompt": st.booleans(),
    },
)


@st.composite
def bodies(draw: Any) -> tuple[bytes, Callable[[Any], bytes]]:
    """A body, and what makes the same around other words."""
    around, first, place = draw(fields), draw(messages), draw(st.integers(0, 9))
    spaces = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:  ")]))
    twice = draw(st.sampled_from(["", "", "", "before", "behind"]))
    is_ascii = draw(st.booleans())

    def written(words: Any) -> bytes:
        pairs = list(around.items())
        pairs.insert(place % (len(pairs) + 1), ("messages", words))
        other = [("messages", [{"role": "user", "content": "twice"}])]
        pairs = (other if twice == "before" else []) + pairs + (other if twice == "behind" else [])
        parts = [
            f"{json.dumps(name)}{spaces[1]}{json.dumps(value, ensure_ascii=is_ascii)}"
            for name, value in pairs
        ]
        return ("{" + spaces[0].join(parts) + "}").encode("utf-8", "surrogatepass")

    return written(first), written


@given(bodies(), messages)
@example((b"", lambda words: b'{"model":"fake","messages":%b}' % json.dumps(words).encode()), [])
def test_what_is_read_of_words_is_what_is_read_of_the_body(
    made: tuple[bytes, Callable[[Any], bytes]], others: Any
) -> None:
    first, written = made
    try:
        known = words_from(first)
    except LlmhostError:
        return
    if known is None:
        return
    key, words = known
    second = written(others)
    cast = cast_of(BEGUN, bytes_of(second))
    if cast is None or cast.key != key:
        return
    try:
        request = words.reader(cast, "req_1")()
    except (LlmhostError, msgspec.MsgspecError):
        with pytest.raises(LlmhostError):
            read(second)
        return
    if request is not None:
        assert request == read(second)
        assert request.texts == read(second).texts


@given(texts, texts, fields)
def test_what_is_read_of_a_prompt_is_what_is_read_of_the_body(
    one: str, other: str, around: dict[str, Any]
) -> None:
    around.pop("metadata", None)
    first = json.dumps({"prompt": one, **around}).encode()
    second = json.dumps({"prompt": other, **around}).encode()
    known = words_from(first, is_chat=False)
    cast = cast_of(BEGUN, bytes_of(second, "/v1/completions"))
    if around.get("stream") and known is None:
        return
    assert known is not None and cast is not None
    if cast.key == known[0]:  # not where the words are around, too
        assert known[1].reader(cast, "req_1")() == read(second, is_chat=False)


def chat(words: str, around: str = '"model":"fake"') -> bytes:
    return f'{{{around},"messages":{words}}}'.encode()


USER = '[{"role":"user","content":"a"}]'


@pytest.mark.parametrize(
    "words",
    [
        '[{"role":"user","content":"other"}]',
        '[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"t"}]}]',
        '[{"content":"\\u00e9\\"]}","role":"assistant"}]',
    ],
)
def test_words_alone_differ_within_a_mould(words: str) -> None:
    known = words_from(chat(USER))
    assert known is not None
    cast = cast_of(BEGUN, bytes_of(chat(words)))
    assert cast is not None and cast.key == known[0]
    assert known[1].reader(cast, "req_1")() == read(chat(words))


@pytest.mark.parametrize(
    "words",
    [
        '[{"role":"user","content":[{"type":"file","file":{"file_data":"data:,x"}}]}]',
        '[{"role":"assistant","content":"a","tool_calls":[]}]',
        '[{"role":"user","content":"a","name":"n"}]',
        '[{"role":"assistant"}]',
        "[]",
    ],
)
def test_what_is_more_than_text_is_read_on_the_long_way(words: str) -> None:
    known = words_from(chat(USER))
    cast = cast_of(BEGUN, bytes_of(chat(words)))
    assert known is not None and cast is not None and cast.key == known[0]
    assert known[1].reader(cast, "req_1")() is None


@pytest.mark.parametrize(
    "body",
    [
        chat(USER, '"model":"fake","echo":true'),
        b'{"messages":' + USER.encode() + b',"model":"fake","messages":' + USER.encode() + b"}",
    ],
)
def test_a_body_whose_rest_speaks_of_its_words_has_no_mould(body: bytes) -> None:
    assert words_from(body) is None


def test_what_is_around_the_words_and_who_sends_it_make_the_mould() -> None:
    def key(body: bytes = chat(USER), begun: Any = BEGUN, **facts: Any) -> bytes | None:
        cast = cast_of(begun, bytes_of(body, **facts))
        return None if cast is None else cast.key

    keys = [
        key(),
        key(chat(USER, '"model":"other"')),
        key(chat(USER, ' "model":"fake"')),
        key(head="authorization: Bearer x\r\n"),
        key(begun=blake2b(b"there", key=b"key", digest_size=16)),
    ]
    assert None not in keys and len(set(keys)) == len(keys)
    assert key(chat('[{"role":"user","content":"much longer than that"}]')) == key()


TRACED = "traceparent: 00-{0}-b7-01\r\nTraceState: a={0}\r\nx-b3-spanid: {0}\r\n"


def test_a_clients_id_and_its_traces_are_no_part_of_the_mould() -> None:
    casts = [
        cast_of(BEGUN, bytes_of(chat(USER), head=f"X-Request-Id: {id_}\r\n{TRACED.format(id_)}"))
        for id_ in ("one", "another")
    ]
    first, second = casts
    assert first is not None and second is not None and first.key == second.key
    assert (first.client_id, second.client_id) == ("one", "another")


@pytest.mark.parametrize(
    "head", ["x-request-id: a b\r\n", "x-request-id: \r\n", f"x-request-id: {'a' * 129}\r\n"]
)
def test_an_id_that_is_none_is_told_to_nobody(head: str) -> None:
    cast, other = cast_of(BEGUN, bytes_of(chat(USER), head=head)), "x-request-id: c d\r\n"
    assert cast is not None and cast.client_id is None
    different = cast_of(BEGUN, bytes_of(chat(USER), head=other))
    assert different is not None and different.key != cast.key


@pytest.mark.parametrize(
    "data",
    [
        bytes_of(b"x" + chat(USER)),
        bytes_of(chat(USER))[:-1],
        bytes_of(chat(USER)) + b"POST",
        bytes_of(chat(USER)).replace(b"Content-Length: ", b"Content-Length: +"),
        bytes_of(chat(USER)).replace(b"Content-Length: ", b"x-content-length: "),
        bytes_of(b"[" * 9_000),
        bytes_of(chat(f'[{{"role":"user","content":"{"a" * 20_000}"}}]')),
        bytes_of(b'{"model":"fake"}'),
        bytes_of(chat(USER), head="x-request-id: a\r\nX-Request-Id: b\r\n"),
    ],
)
def test_what_is_not_one_whole_request_with_words_is_cast_in_no_mould(data: bytes) -> None:
    assert cast_of(BEGUN, data) is None


# ------------------------------------------------------------ both ways


async def say(host: TestHost, key: str | None, *texts: str, **body: Any) -> list[Answer]:
    answers = []
    for text in texts:
        answers.append(await run(plain(text, **body), key).of(host))
        await settled(host)
    return answers


async def taught(host: TestHost, key: str | None = None, **body: Any) -> None:
    """Have the mould known."""
    await say(host, key, "the first", "the second one", **body)
    assert alike(host) == 0


class Listening(Plugin):
    """Hears what it is asked, and in which order."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def _hear(self, hook: str, request: GenerationRequest) -> None:
        self.heard.append((hook, request.text))

    @hookimpl
    def route_request(self, request):
        self._hear("route", request)

    @hookimpl
    def quote_price(self, request):
        self._hear("quote", request)

    @hookimpl
    def check_input(self, request):
        self._hear("input", request)
        return Refusal("no") if "unwelcome" in request.text else None

    @hookimpl
    def check_output(self, request, text):
        self._hear("output", request)
        return Refusal("no") if "unheard" in request.text else None


MIX = (
    *("one", "two words", "three, and some more", "a@b.example writes", "four"),
    *("DE89370400440532013000 is it", "a forbidden word", "five", "unwelcome", "unheard"),
    *("six", "x" * 5_000, "y" * 3_000, "seven", "seven", "seven", "é\\u00e9\x00", "eight", ""),
)


async def mix(host: TestHost, plugin: Listening) -> tuple[list[Answer], list[tuple[str, str]]]:
    """Of each kind of text several, in one order; and what plugins have heard of those that limits let in."""
    books = host.host.books
    key = await host.make_key(team="t", limits=Limits(requests_per_minute=200, max_concurrency=9))
    few = await host.make_key(limits=Limits(requests_per_minute=5, input_tokens_per_minute=60))
    poor = await host.make_key(org="poor")
    budget = Budget(id="bud_1", org="poor", period=Period.MONTH, limit_nano=14_000)
    await books.budgets.create(budget, who="test")
    answers = await say(host, key, *MIX)
    answers += await say(host, key, *MIX, max_tokens=3, user="u", seed=None)
    heard = sorted(set(plugin.heard))
    answers += await say(host, few, "one", "two", "three", "four", "five", "six words are too many")
    answers += await say(host, poor, "one", "two", "three", "four", "five", max_tokens=16)
    for at in range(4):
        body = {"model": "other", "prompt": f"{at} is said", "max_tokens": 5}
        answers.append(await Asked(body, key, {}, "/v1/completions").of(host))
        await settled(host)
    return answers, heard


async def test_both_ways_say_and_write_down_the_same() -> None:
    settings = msgspec.structs.replace(
        CHECKED,
        safety=SafetySettings(
            blocked_words=("forbidden",),
            redact=("pii.email",),
            warn=("pii.iban",),
            check_output=True,
            max_prompt_chars=4_500,
        ),
    )
    seen = []
    for is_on in (True, False):
        plugin = Listening()
        async with node(plugin, settings=settings) as host:
            host.host.repeats.is_on = is_on
            answers, heard = await mix(host, plugin)
            said = [each.said for each in answers]
            seen.append((said, rows(host), await audited(host), heard, alike(host)))
    (
        (said, written, audit, heard, count),
        (said_long, written_long, audit_long, heard_long, none),
    ) = seen

    assert count > 25 and none == 0
    for one, other in zip(said, said_long, strict=True):
        assert one == other
    for name, found in written.items():
        assert found == written_long[name], name
    assert audit == audit_long
    assert heard == heard_long


async def test_the_third_of_a_mould_runs_by_the_short_way_and_hears_its_own_answer() -> None:
    async with node() as host:
        await taught(host)
        (third,) = await say(host, None, "the third is another one")
        assert (alike(host), short(host)) == (1, 0)
        host.host.repeats.is_on = False
        (again,) = await say(host, None, "the third is another one")
        assert third.said == again.said
        words = fake_chat_words([{"role": "user", "content": "the third is another one"}], 6)
        assert words.encode() in third.body


async def test_over_a_connection_they_are_answered_before_they_are_read() -> None:
    seen = []
    for is_on in (True, False):
        async with node() as host:
            host.host.repeats.is_on = is_on
            key = await host.make_key()
            client, texts = Client(host), ("a", "b" * 9, "c " * 50, "d", "e\u00e9", "f")
            answers = [await client.ask(raw(run(plain(text), key))) for text in texts]
            whole = raw(run(plain("in pieces"), key))
            answers.append(await client.ask(whole[:40], whole[40:]))
            await settled(host)
            seen.append(([answer.said for answer in answers], rows(host)["entries"]))
            assert alike(host) == (4 if is_on else 0)
    assert seen[0] == seen[1]


async def test_each_hears_the_id_that_its_client_gave_it() -> None:
    seen = []
    for is_on in (True, False):
        async with node() as host:
            host.host.repeats.is_on = is_on
            client, answers = Client(host), []
            for at, text in enumerate(("a", "b", "c", "d", "forbidden", "é")):
                traced = {
                    "x-request-id": f"id-{at}" if at != 3 else "no id",
                    "traceparent": f"{at}",
                }
                for stream in (False, True):
                    asked = Asked(plain(text, stream=stream), None, traced)
                    answers.append(await client.ask(raw(asked)))
                    data = raw(Asked(plain(f"{text} in pieces", stream=stream), None, traced))
                    answers.append(await client.ask(data[:50], data[50:]))
                    await settled(host)
            ids = [(each.status, each.headers.get("x-client-request-id")) for each in answers]
            seen.append((ids, rows(host)["entries"], rows(host)["traffic"]))
            assert (alike(host), host.host.repeats.streams.ran) == ((4, 4) if is_on else (0, 0))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("hides", [True, False])
async def test_thoughts_are_told_from_content_on_both_ways(
    hides: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = fake_chat_words([{"role": "user", "content": "the third"}], 6).split()
    marks = Marks(thoughts=(words[0], words[2]))
    monkeypatch.setattr(WordTokenizer, "marks", marks)
    begun = "beginning with thoughts"
    monkeypatch.setattr(
        WordTokenizer,
        "begins_with_thoughts",
        lambda self, prompt: self.encode(begun)[-1] in prompt,
    )
    seen = []
    for is_on in (True, False):
        async with node() as host:
            host.host.repeats.is_on = is_on
            client, answers, facts = Client(host), [], {"include_reasoning": not hides}
            for text in ("a", "b", "the third", begun, "the third", "the third", "d"):
                for stream in (False, True):
                    asked = run(plain(text, stream=stream, **facts))
                    answers.append(await client.ask(raw(asked)))
                    await settled(host)
            if is_on:
                ran = alike(host), short(host), host.host.repeats.streams.ran
                assert ran == (2, 1, 4)
            told = [each.body for each in answers]
            assert any(words[1].encode() in each for each in told[4:6]) is not hides
            seen.append(([_said(each) for each in answers], rows(host)["entries"]))
    assert seen[0] == seen[1]


def _said(answer: Answer) -> Any:
    """A stream as the texts of all its choices' fields, one after the other."""
    if "content-length" in answer.headers:
        return answer.said
    told: dict[str, str] = {}
    for line in answer.body.decode().split("\n"):
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                for name, text in choice["delta"].items():
                    told[name] = told.get(name, "") + (text or "")
    return told


async def test_what_comes_behind_one_that_runs_waits_for_its_answer() -> None:
    async with node() as host:
        client = Client(host)
        for text in ("a", "b"):
            await client.ask(raw(run(plain(text))))
        client.pipe.written = b""
        for text in ("one", "another"):
            client.connection.data_received(raw(run(plain(text))))
        await until(lambda: client.pipe.written.count(b"HTTP/1.1 200 OK") == 2)
        assert alike(host) == 2
        words = [fake_chat_words([{"role": "user", "content": t}], 6) for t in ("one", "another")]
        places = [client.pipe.written.index(each.encode()) for each in words]
        assert places == sorted(places)


async def test_what_is_said_for_the_second_time_is_learnt_word_for_word() -> None:
    async with node() as host:
        await taught(host)
        await say(host, None, "this", "this", "this", "that")
        assert (alike(host), short(host)) == (2, 1)


async def test_those_that_come_at_once_are_asked_about_one_hook_after_the_other() -> None:
    plugin = Listening()
    async with node(plugin) as host:
        await taught(host)
        plugin.heard.clear()
        texts = ["b", "c is longer", "d"]
        await asyncio.gather(*(run(plain(text)).of(host) for text in texts))
        assert alike(host) == 3
    hooks = [(hook, text) for hook in ("route", "quote", "input", "output") for text in texts]
    assert plugin.heard == hooks


# Who waits for a place has what others have given back by then, or not: there is room for all in those budgets.
FEW = [
    Limits(input_tokens_per_minute=60),
    Limits(input_tokens_per_minute=10_000, output_tokens_per_minute=36),
    Limits(requests_per_minute=5),
    Limits(),
]
WAITING = [Limits(max_concurrency=2), Limits(input_tokens_per_minute=60, max_concurrency=5)]


@pytest.mark.parametrize(
    ("limits", "budget_nano"),
    [
        *((limits, nano) for limits in FEW for nano in (12_000, 20_000, 10**9)),
        *((limits, 10**9) for limits in WAITING),
    ],
)
async def test_of_those_that_come_at_once_as_many_are_let_in_as_one_after_the_other(
    limits: Limits, budget_nano: int
) -> None:
    seen = []
    for is_on in (True, False):
        async with node() as host:
            host.host.repeats.is_on = is_on
            key = await host.make_key(limits=limits)
            budget = Budget(id="bud_1", org="acme", period=Period.MONTH, limit_nano=budget_nano)
            await host.host.books.budgets.create(budget, who="test")
            await taught(host, key)
            texts = [f"{at} " + "more " * (at % 3) for at in range(6)]
            answers = await asyncio.gather(*(run(plain(text), key).of(host) for text in texts))
            await settled(host)
            assert not host.host.books.budgets.accounts.live_holds()
            entries = sorted(map(repr, rows(host)["entries"]))
            seen.append(([answer.said for answer in answers], entries))
            assert alike(host) > 0 or not is_on

    assert seen[0] == seen[1]


HELD = ModelSpec(engine="held", price=FAKE_MODEL.price)


async def test_whoever_leaves_pays_for_what_was_made() -> None:
    held = Held()
    async with node(held, spec=HELD) as host:
        held.go()
        await taught(host)
        held.stop()
        task = asyncio.create_task(run(plain("the third")).of(host))
        await until(lambda: host.host.processor.in_flight == 1)
        (live,) = host.host.processor._live
        held.steps.release(2)
        await until(lambda: len(live.stream) > 0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)  # the engine hears of it
        held.go()
        await settled(host)
        last = host.entries()[-1]
        assert last["outcome"] == "cancelled" and last["amount_nano"] > 0


@pytest.mark.parametrize("change", CHANGES)
async def test_what_is_changed_holds_for_the_next_of_a_mould(change: str) -> None:
    async with node() as host:
        act, status = CHANGES[change]
        key = await host.make_key(team="t")
        budget = Budget(id="bud_1", org="acme", period=Period.MONTH, limit_nano=10**9)
        await host.host.books.budgets.create(budget, who="test")
        await taught(host, key)
        (third,) = await say(host, key, "hello is the third")
        assert (third.status, alike(host)) == (200, 1)
        await act(host, key)
        statuses = [a.status for a in await say(host, key, "hello four", "hello five")]
        assert statuses[-1] == status
        assert not host.host.books.budgets.accounts.live_holds()


async def test_a_text_that_breaks_is_no_other_ones_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node() as host:
        await taught(host)
        tokenizer: Any = host.host.deployments.find("fake").replicas[0].tokenizer
        render = type(tokenizer).render_chat

        def rendered(self: Any, said: Any, **facts: Any) -> str:
            if said[-1]["content"] == "broken":
                raise ValueError("no")
            return str(render(self, said, **facts))

        monkeypatch.setattr(type(tokenizer), "render_chat", rendered)
        texts = ("fine", "broken", "good")
        answers = await asyncio.gather(*(run(plain(text)).of(host) for text in texts))
        await settled(host)
        assert [answer.status for answer in answers] == [200, 500, 200]
        assert alike(host) == 2
        assert [entry["outcome"] for entry in host.entries()].count("failed") == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_body_of_a_mould_may_be_longer_than_the_server_takes(stream: bool) -> None:
    settings = msgspec.structs.replace(CHECKED, server=ServerSettings(max_body_bytes=400))
    seen = []
    for is_on in (True, False):
        async with node(settings=settings) as host:
            host.host.repeats.is_on = is_on
            client, answers = Client(host), []
            for text in ("a", "b", "c", "d " * 200, "e"):
                data = raw(run(plain(text, stream=stream)))
                pieces = raw(run(plain(f"{text} in pieces", stream=stream)))
                answers.append(await client.ask(data))
                answers.append(await client.ask(pieces[:50], pieces[50:]))
                await settled(host)
            seen.append([answer.status for answer in answers])
            ran = host.host.repeats.ran_alike + host.host.repeats.streams.ran
            assert ran == (4 if is_on else 0)
    assert seen[0] == seen[1] == [*[200] * 6, 413, 413, 200, 200]


async def test_long_texts_that_come_once_are_neither_kept_nor_learnt_from() -> None:
    async with node() as host:
        await taught(host)
        repeats = host.host.repeats
        (known,) = repeats._moulds._kept.values()
        for at in range(3):
            await say(host, None, f"{at} " + "long " * 900, f"{at} " + "longer " * 1_500)
        assert (alike(host), len(repeats)) == (0, 0)
        assert list(repeats._moulds._kept.values()) == [known]
        await say(host, None, "0 " + "long " * 900, "0 " + "long " * 900)
        assert (alike(host), short(host), len(repeats)) == (0, 1, 1)
        await say(host, None, "short")
        assert alike(host) == 1


@pytest.mark.parametrize(
    ("text", "is_cast"),
    [
        ("a" * 6_000, True),
        ("a" * 7_000, False),
        ("\u00e9" * 4_000, True),
        ("a" * 6_050 + "\x00", True),
    ],
)
def test_words_that_are_sure_to_be_long_are_cast_in_no_mould(text: str, is_cast: bool) -> None:
    words = json.dumps([{"role": "user", "content": text}], ensure_ascii=False)
    assert (cast_of(BEGUN, bytes_of(chat(words))) is not None) is is_cast
