"""Calls that a model decides upon, and its thoughts, over HTTP: what an answer's text becomes in a client's hands."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from tests.unit.pipeline.scripted import MarkedWords, ScriptedEngine, Spoken, scripted_node
from tests.unit.text.answer_templates import JSON_CALLS
from tests.unit.text.marked import tokenizer_of

from llmhost.config.schema.money import PriceSettings
from llmhost.core.output import FinishReason
from llmhost.core.ports import Marks
from llmhost.core.thoughts import ThoughtIds
from llmhost.engines.fake import fake_answer
from llmhost.testing import FAKE_MODEL, TestHost, make_host
from llmhost.text.grammar_calls import HELD

THINK = ("<think>", "</think>")
HERMES = Marks("hermes")
THINKING = Marks("hermes", THINK)
TOLD = Marks("response_template", response_template=json.dumps(JSON_CALLS))
"""A format to which calls are not held, so that any vocabulary will do."""
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'
NOW_CALL = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'


@dataclass
class Answer:
    """One choice, as a client has it in the end."""

    content: str | None = None
    reasoning: str | None = None
    calls: list[tuple[str, str]] = field(default_factory=list)
    finish_reason: str | None = None

    def told(self) -> tuple[str | None, str | None, list[tuple[str, str]], str | None]:
        return self.content, self.reasoning, self.calls, self.finish_reason


@dataclass
class Model:
    host: TestHost
    engine: ScriptedEngine
    words: MarkedWords

    async def ask(self, **body: Any) -> "asyncio.Task[httpx.Response]":
        """Begin a request; returns once its sequences are there to be spoken for."""
        before = len(self.engine.specs)
        asked = asyncio.create_task(self.host.chat("hello", model="m", **body))
        while len(self.engine.specs) < before + body.get("n", 1):
            assert not asked.done(), asked.result().text
            await asyncio.sleep(0)
        return asked

    async def answer(
        self, *pieces: str, reason: FinishReason = FinishReason.STOP, **body: Any
    ) -> Answer:
        asked = await self.ask(**body)
        for piece in pieces:
            self.engine.say(0, piece)
        self.engine.end(0, reason)
        response = await asked
        assert response.status_code == 200, response.text
        [answer] = answers_of(response, is_stream=body.get("stream", False))
        self.engine.specs.clear()
        return answer

    async def both(self, *pieces: str, **facts: Any) -> Answer:
        """The same answer streamed and whole, which are found to be the same."""
        whole = await self.answer(*pieces, **facts)
        streamed = await self.answer(*pieces, stream=True, **facts)
        assert (streamed.content or None) == (whole.content or None)
        assert streamed.told()[1:] == whole.told()[1:]
        return whole


def answers_of(response: httpx.Response, *, is_stream: bool) -> list[Answer]:
    if not is_stream:
        return [_of_message(choice) for choice in response.json()["choices"]]
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    found: dict[int, Answer] = {}
    for event in map(json.loads, events):
        for choice in event["choices"]:
            _add(found.setdefault(choice["index"], Answer()), choice)
    return [found[index] for index in sorted(found)]


def _of_message(choice: dict[str, Any]) -> Answer:
    message = choice["message"]
    assert message.get("reasoning") == message.get("reasoning_content")
    assert message.get("tool_calls") != []
    calls = [
        (call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls", ())
    ]
    return Answer(message["content"], message.get("reasoning"), calls, choice["finish_reason"])


def _add(answer: Answer, choice: dict[str, Any]) -> None:
    assert answer.finish_reason is None
    delta = choice["delta"]
    assert delta.get("reasoning") == delta.get("reasoning_content")
    if delta.get("content") is not None:
        answer.content = (answer.content or "") + delta["content"]
    if delta.get("reasoning") is not None:
        assert not answer.calls
        answer.reasoning = (answer.reasoning or "") + delta["reasoning"]
    for call in delta.get("tool_calls", ()):
        if call["index"] == len(answer.calls):
            assert call["id"].startswith("call_")
            answer.calls.append((call["function"]["name"], ""))
        name, said = answer.calls[call["index"]]
        answer.calls[call["index"]] = (name, said + call["function"]["arguments"])
    answer.finish_reason = choice["finish_reason"]


@asynccontextmanager
async def model(
    marks: Marks = HERMES, *, is_thinking: bool = False, **facts: Any
) -> AsyncIterator[Model]:
    words = MarkedWords(marks, is_thinking=is_thinking)
    async with scripted_node(words, **facts) as (host, engine):
        yield Model(host, engine, words)


# -- auto -----------------------------------------------------------------------------------------------------------


async def test_a_model_that_may_call_a_tool_does_so_in_its_own_format() -> None:
    async with model() as m:
        answer = await m.both("Let me", " see.\n", CALL[:30], CALL[30:], tools=[WEATHER, NOW])

    calls = [("get_weather", '{"city": "Oslo"}')]
    assert answer.told() == ("Let me see.", None, calls, "tool_calls")


async def test_an_answer_that_is_nothing_but_calls_has_no_content() -> None:
    async with model() as m:
        answer = await m.both(CALL, "\n", NOW_CALL, tools=[WEATHER, NOW])

    assert answer.told() == (
        None,
        None,
        [("get_weather", '{"city": "Oslo"}'), ("now", "{}")],
        "tool_calls",
    )


async def test_a_model_that_may_call_need_not() -> None:
    async with model() as m:
        answer = await m.both("It is", " 3 < 4", " degrees.\n", tools=[WEATHER])

    assert answer.told() == ("It is 3 < 4 degrees.\n", None, [], "stop")


async def test_calls_that_are_cut_off_end_with_length() -> None:
    async with model() as m:
        answer = await m.both(CALL[:-17], tools=[WEATHER], reason=FinishReason.LENGTH)

    assert answer.finish_reason == "length"
    assert answer.calls[0][1] == '{"city": "Os'


async def test_without_parallel_calls_the_first_one_is_the_answer() -> None:
    fields = {"tools": [WEATHER, NOW], "parallel_tool_calls": False}
    async with model() as m:
        answer = await m.both(CALL, "\n", NOW_CALL[:-10], "tail", **fields)

    assert answer.told() == (None, None, [("get_weather", '{"city": "Oslo"}')], "tool_calls")


async def test_of_allowed_tools_the_prompt_tells_and_of_no_others() -> None:
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "now"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    async with model() as m:
        answer = await m.both(NOW_CALL, tools=[WEATHER, NOW], tool_choice=choice)
        told = m.words.rendered["tools"]

    assert answer.calls == [("now", "{}")]
    assert [tool["function"]["name"] for tool in told] == ["now"]


async def test_what_looks_like_a_call_is_text_where_there_are_no_tools() -> None:
    async with model() as m:
        alone = await m.both(CALL)
        refused = await m.both(CALL, tools=[WEATHER], tool_choice="none")

    assert alone.told() == refused.told() == (CALL, None, [], "stop")


async def test_an_operator_names_the_format_that_a_template_keeps_to_itself() -> None:
    text = '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}'
    async with model(Marks(), tool_format="mistral") as m:
        answer = await m.both(text, tools=[WEATHER])
        shown = await m.ask(tools=[WEATHER])
        assert "[TOOL_CALLS]" in m.engine.specs[0].shown
        m.engine.end(0)
        await shown

    assert answer.told() == (None, None, [("get_weather", '{"city": "Oslo"}')], "tool_calls")


@pytest.mark.parametrize("facts", [{"marks": Marks()}, {"tool_format": "none"}])
async def test_a_model_without_a_format_is_refused_with_what_works_instead(
    facts: dict[str, Any],
) -> None:
    async with model(**facts) as m:
        refusal = await m.host.chat("hello", model="m", tools=[WEATHER])
        asked = await m.ask(tools=[WEATHER], tool_choice="required")
        m.engine.say(0, '[{"name": "get_weather", "arguments": {}}]')
        m.engine.end(0)
        [answer] = answers_of(await asked, is_stream=False)

    error = refusal.json()["error"]
    assert (refusal.status_code, error["code"], error["param"]) == (
        400,
        "unsupported_parameter",
        "tools",
    )
    assert '"required"' in error["message"]
    assert answer.calls == [("get_weather", "{}")]


async def test_choices_are_read_apart() -> None:
    for stream in (False, True):
        async with model(THINKING) as m:
            asked = await m.ask(tools=[NOW], n=2, stream=stream)
            for index, text in ((0, "<think>a</th"), (1, "b"), (0, "ink>" + NOW_CALL)):
                m.engine.say(index, text)
            m.engine.end(1)
            m.engine.end(0)
            first, second = answers_of(await asked, is_stream=stream)

        assert first.told() == (first.content, "a", [("now", "{}")], "tool_calls")
        assert second.told() == ("b", None, [], "stop")


async def test_log_probabilities_are_of_all_tokens_also_of_those_that_mark_calls() -> None:
    async with model(THINKING) as m:
        asked = await m.ask(tools=[NOW], logprobs=True)
        for piece in ("<think>", "a", "</think>", "b ", NOW_CALL):
            m.engine.say(0, piece)
        m.engine.end(0)
        [choice] = (await asked).json()["choices"]

    assert len(choice["logprobs"]["content"]) == 5
    assert choice["message"]["reasoning"] == "a"
    assert choice["message"]["content"] == "b"
    assert choice["finish_reason"] == "tool_calls"


# -- held calls -----------------------------------------------------------------------------------------------------

STRICT = {
    "type": "function",
    "function": {
        "name": "paint",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"hue": {"enum": ["red", "blue"]}, "is_bright": {"type": "boolean"}},
            "required": ["hue", "is_bright"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("name", ["hermes", "mistral", "kimi_k2", "deepseek_v31", "granite"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_a_model_begins_is_held_to_the_tool(
    name: str, stream: bool, tmp_path: Path
) -> None:
    words = tokenizer_of(name, tmp_path)
    [opener] = words.encode(HELD[name].openers[0], add_special_tokens=False)
    spoken = msgspec.structs.replace(
        FAKE_MODEL, engine="spoken", options={"vocab": words.vocab_size}
    )
    async with make_host(models={"m": spoken}, plugins=[Spoken(words)]) as host:
        response = await host.chat(
            "hello",
            model="m",
            tools=[STRICT],
            parallel_tool_calls=False,
            logit_bias={str(opener): 100},
            max_tokens=300,
            stream=stream,
        )
    [answer] = answers_of(response, is_stream=stream)

    assert answer.finish_reason == "tool_calls"
    [(called, arguments)] = answer.calls
    assert called == "paint"
    assert json.loads(arguments)["hue"] in ("red", "blue")
    assert isinstance(json.loads(arguments)["is_bright"], bool)


async def test_a_vocabulary_that_can_not_be_held_is_free_unless_a_tool_is_strict() -> None:
    fake = msgspec.structs.replace(FAKE_MODEL, tool_format="hermes")
    async with make_host(models={"m": fake}) as host:
        free = await host.chat("hello", model="m", tools=[NOW], max_tokens=3)
        strict = await host.chat("hello", model="m", tools=[STRICT], max_tokens=3)

    assert free.status_code == 200
    assert strict.json()["error"]["param"] == "tools"


async def test_an_answer_that_has_a_form_already_is_not_held_to_calls() -> None:
    async with model() as m:
        asked = await m.ask(tools=[NOW], response_format={"type": "json_object"})
        formed = m.engine.specs[0].grammar
        m.engine.end(0)
        await asked
        m.engine.specs.clear()
        asked = await m.ask(tools=[NOW])
        free = m.engine.specs[0].grammar
        m.engine.end(0)
        await asked

    assert formed is not None
    assert formed.kind == "json_object"
    assert free is not None
    assert (free.kind, json.loads(free.text)["format"]) == ("auto_calls", "hermes")


# -- thoughts -------------------------------------------------------------------------------------------------------


async def test_thoughts_are_told_apart_by_both_names() -> None:
    async with model(THINKING) as m:
        answer = await m.both("<think>\nI ", "see.", "</think>\n\n", "Yes.")
        plain = await m.both("Yes.")

    assert answer.told() == ("Yes.", "\nI see.", [], "stop")
    assert plain.told() == ("Yes.", None, [], "stop")


async def test_an_answer_whose_prompt_begins_thoughts_begins_amid_them() -> None:
    async with model(THINKING, is_thinking=True) as m:
        answer = await m.both("I see.", "</thi", "nk>", "Yes.")
        cut = await m.both("I see", reason=FinishReason.LENGTH)

    assert answer.told() == ("Yes.", "I see.", [], "stop")
    assert cut.told() == (cut.content, "I see", [], "length")
    assert not cut.content


async def test_thoughts_come_before_calls_that_are_required() -> None:
    said = '[{"name": "now", "arguments": {}}]'
    async with model(THINKING, is_thinking=True) as m:
        many = await m.both("So.</think>", said, tools=[NOW], tool_choice="required")
        named = {"type": "function", "function": {"name": "now"}}
        one = await m.both("So.</think>", said[1:-1], tools=[NOW], tool_choice=named)

    assert many.told() == one.told() == (None, "So.", [("now", "{}")], "tool_calls")


async def test_thoughts_come_before_an_answer_that_has_a_form() -> None:
    async with model(THINKING) as m:
        answer = await m.both(
            "<think>So.</think>", '{"a":1}', response_format={"type": "json_object"}
        )

    assert answer.told() == ('{"a":1}', "So.", [], "stop")


async def test_channels_are_read_with_tools_and_without() -> None:
    thoughts, start = "<|channel|>analysis<|message|>Hm.<|end|>", "<|start|>assistant<|channel|>"
    said = f"{thoughts}{start}final<|message|>Yes."
    call = f"{thoughts}{start}commentary to=functions.now <|constrain|>json<|message|>{{}}"
    async with model(Marks("harmony")) as m:
        answer = await m.both(said)
        called = await m.both(call, tools=[NOW])

    assert answer.told() == ("Yes.", "Hm.", [], "stop")
    assert called.told() == (None, "Hm.", [("now", "{}")], "tool_calls")


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_are_counted_and_paid_for_as_such(stream: bool) -> None:
    words = MarkedWords(THINKING)
    said = fake_answer(
        words.encode(words.render_chat([{"role": "user", "content": "hello"}])), 9, 4096
    )
    words.marks = Marks("hermes", THINK, ThoughtIds((said[1],), (said[4],)))
    price = PriceSettings(input="0", output="1", reasoning="3")
    spoken = msgspec.structs.replace(FAKE_MODEL, engine="spoken", price=price)
    async with make_host(models={"m": spoken}, plugins=[Spoken(words)]) as host:
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        response = await host.chat("hello", model="m", max_tokens=9, **options)
        last = response.text.split("data: ")[-2] if stream else response.text
        usage = json.loads(last)["usage"]
        [entry] = [each for each in host.entries() if each["tokens"]["reasoning"]]

    assert usage["completion_tokens"] == 9
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 4
    assert entry["tokens"]["output"] == 5
    assert entry["amount_nano"] == 5 * 1_000 + 4 * 3_000


async def test_thoughts_that_nobody_wants_are_not_told() -> None:
    async with model(THINKING) as m:
        answer = await m.both("<think>So.</think>", "Yes.", include_reasoning=False)

    assert answer.told() == ("Yes.", None, [], "stop")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, {}),
        (
            {"reasoning_effort": "high"},
            {"reasoning_effort": "high", "enable_thinking": True, "thinking": True},
        ),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"thinking": True}},
            {"reasoning_effort": "none", "enable_thinking": False, "thinking": True},
        ),
    ],
)
async def test_templates_are_told_of_an_effort(fields: Any, told: dict[str, Any]) -> None:
    async with model(THINKING) as m:
        await m.answer("Yes.", **fields)
        rendered = m.words.rendered

    known = {"reasoning_effort", "enable_thinking", "thinking"}
    assert {name: rendered[name] for name in known & rendered.keys()} == told


# -- history --------------------------------------------------------------------------------------------------------


async def test_a_model_is_told_what_it_called_thought_and_learnt() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": None, "reasoning": "So.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "12:00"}]},
        {"role": "assistant", "content": "Noon.", "reasoning_content": "Ah.", "tool_calls": None},
        {"role": "assistant", "content": "Noon.", "reasoning": None, "tool_calls": []},
    ]
    async with make_host(
        models={"m": msgspec.structs.replace(FAKE_MODEL, engine="spoken")},
        plugins=[Spoken(words := MarkedWords(TOLD))],
    ) as host:
        body = {"model": "m", "messages": messages, "tools": [NOW], "max_tokens": 2}
        body["tool_choice"] = "none"  # words alone can't spell a call
        response = await host.client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        _, called, learnt, noon, _ = words.rendered["messages"]

    assert called["reasoning_content"] == "So."
    assert called["tool_calls"] == [call]
    assert (learnt["content"], learnt["tool_call_id"]) == ("12:00", "call_1")
    assert noon == {"role": "assistant", "content": "Noon.", "reasoning_content": "Ah."}


# -- the template of a model's own files ----------------------------------------------------------------------------


async def test_answers_are_read_as_the_models_own_files_tell() -> None:
    async with model(TOLD) as m:
        answer = await m.both(
            "<thi", "nk>Hm.</think>\nLet me see.\n<tool", CALL[5:], tools=[WEATHER]
        )
        plain = await m.both("<think>Hm.</think>\nNo.<|im_end|>")

    calls = [("get_weather", '{"city": "Oslo"}')]
    assert answer.told() == ("Let me see.", "Hm.", calls, "tool_calls")
    assert plain.told() == ("No.", "Hm.", [], "stop")


async def test_files_that_tell_of_no_calls_make_no_model_that_calls() -> None:
    fields = {name: each for name, each in JSON_CALLS["fields"].items() if name != "tool_calls"}
    marks = Marks(response_template=json.dumps({**JSON_CALLS, "fields": fields}))
    async with model(marks) as m:
        refused = await m.host.chat("hello", model="m", tools=[WEATHER])
        answer = await m.both("<think>Hm.</think>No.")

    assert refused.json()["error"]["code"] == "unsupported_parameter"
    assert answer.told() == ("No.", "Hm.", [], "stop")


async def test_the_operators_word_comes_before_the_files() -> None:
    async with model(TOLD, tool_format="none") as m:
        answer = await m.both("<think>Hm.</think>No.")
    async with model(TOLD, tool_format="mistral") as m:
        call = await m.both('[TOOL_CALLS][{"name": "now", "arguments": {}}]', tools=[NOW])

    assert answer.content == "<think>Hm.</think>No."
    assert call.calls == [("now", "{}")]
