"""POST /v1/chat/completions, asked by the real OpenAI client."""

import asyncio
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from server_process import Node, chat_body, events

from llmhost.api.wire import ChatBody
from llmhost.testing import fake_chat_words

ASK: list[Any] = [{"role": "user", "content": "say something"}]


def test_an_answer_is_what_the_model_says(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=ASK, max_tokens=7)

    assert answer.choices[0].message.content == fake_chat_words(ASK, 7)
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == "echo"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 7)
    assert answer.usage.total_tokens == 11
    assert answer._request_id is not None


def test_a_stream_says_the_same_in_pieces(client: OpenAI) -> None:
    with client.chat.completions.create(
        model="slow", messages=ASK, max_tokens=9, stream=True
    ) as stream:
        chunks = list(stream)

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == fake_chat_words(ASK, 9)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1


def test_usage_comes_in_a_chunk_of_its_own_and_only_when_asked_for(open_node: Node) -> None:
    asked = open_node.chat(max_tokens=3, stream=True, stream_options={"include_usage": True})
    unasked = open_node.chat(max_tokens=3, stream=True, stream_options={"include_usage": False})

    *chunks, last, done = events(asked)
    assert done == "[DONE]"
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 7
    *chunks, done = events(unasked)
    assert done == "[DONE]"
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_limit_are_kept(client: OpenAI, limit: str) -> None:
    answer = client.chat.completions.create(model="parrot", messages=ASK, extra_body={limit: 5})

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_max_completion_tokens_outweighs_the_old_name(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="echo", messages=ASK, max_tokens=9, max_completion_tokens=2
    )

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_without_a_limit_an_answer_goes_on_to_the_end_of_the_window(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="narrow", messages=ASK)

    assert answer.usage is not None
    assert answer.usage.total_tokens == 64
    assert answer.choices[0].finish_reason == "length"


def test_several_choices_each_have_their_index_and_add_up_in_usage(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=ASK, max_tokens=4, n=3)

    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {fake_chat_words(ASK, 4)}
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 12)


def test_a_stream_of_several_choices_keeps_them_apart(client: OpenAI) -> None:
    texts, roles, reasons = {}, {}, {}
    with client.chat.completions.create(
        model="slow", messages=ASK, max_tokens=5, n=3, stream=True
    ) as stream:
        for chunk in stream:
            (choice,) = chunk.choices
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            roles[choice.index] = roles.get(choice.index, 0) + (choice.delta.role is not None)
            if choice.finish_reason is not None:
                assert reasons.setdefault(choice.index, choice.finish_reason) == "length"

    assert texts == dict.fromkeys(range(3), fake_chat_words(ASK, 5))
    assert roles == dict.fromkeys(range(3), 1)
    assert set(reasons) == {0, 1, 2}


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_an_answer_and_is_not_part_of_it(open_node: Node, stream: bool) -> None:
    words = fake_chat_words(ASK, 8).split()
    stop = f"{words[4]} {words[5]}"

    response = open_node.chat(max_tokens=8, stop=["never", stop], stream=stream)

    if stream:
        chunks = [e for e in events(response) if e != "[DONE]"]
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        choice = response.json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text.rstrip(), reason) == (" ".join(words[:4]), "stop")


def test_the_same_seed_gives_the_same_answer(client: OpenAI) -> None:
    answers = [
        client.chat.completions.create(
            model="echo", messages=ASK, max_tokens=16, seed=seed, temperature=1.5
        )
        for seed in (7, 7, 2**63 - 1, -1)
    ]

    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


def test_every_form_of_content_is_taken(client: OpenAI) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": [{"type": "text", "text": "be kind"}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function"}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "not that"}]},
        {"role": "user", "name": "ann", "content": "go on"},
    ]

    answer = client.chat.completions.create(model="echo", messages=messages, max_tokens=2)

    assert answer.choices[0].finish_reason == "length"


def test_what_clients_send_besides_is_accepted(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="echo",
        messages=ASK,
        max_tokens=1,
        user="u1",
        store=False,
        service_tier="auto",
        metadata={"a": "b"},
        safety_identifier="s",
        prompt_cache_key="k",
        parallel_tool_calls=True,
        frequency_penalty=0,
        presence_penalty=0.0,
        logprobs=False,
        response_format={"type": "text"},
        modalities=["text"],
        tools=[],
        tool_choice="none",
        reasoning_effort="none",
        extra_body={"top_k": -1, "min_p": 0, "some_vendors_word": {"deep": [1, None]}},
        extra_headers={"idempotency-key": "x", "openai-beta": "y", "openai-organization": "z"},
    )

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1


def test_null_means_absent_in_every_field(open_node: Node) -> None:

    fields = set(ChatBody.__struct_fields__) - {"model", "messages"}

    response = open_node.chat(**dict.fromkeys(fields), model="narrow")

    assert response.status_code == 200, response.text


def test_the_types_of_the_client_take_every_body_strictly(open_node: Node) -> None:
    whole = open_node.chat(max_tokens=2, n=2)
    stream = open_node.chat(max_tokens=2, n=2, stream=True, stream_options={"include_usage": True})

    ChatCompletion.model_validate_json(whole.content, strict=True)
    for line in stream.text.splitlines():
        if line.startswith("data: {"):
            ChatCompletionChunk.model_validate_json(line.removeprefix("data: "), strict=True)
    assert set(whole.json()) >= {"id", "object", "created", "model", "choices", "usage"}
    message = whole.json()["choices"][0]["message"]
    assert message["refusal"] is None
    assert "tool_calls" not in message


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions/"])
def test_a_trailing_slash_makes_no_difference(open_node: Node, path: str) -> None:
    assert open_node.post(path, chat_body(max_tokens=1)).status_code == 200


async def test_many_at_once_get_their_own_answers(async_client: AsyncOpenAI) -> None:
    async def ask(i: int) -> tuple[str, str]:
        messages: list[Any] = [{"role": "user", "content": f"question {i} of many"}]
        text = ""
        async with await async_client.chat.completions.create(
            model="slow", messages=messages, max_tokens=6 + i % 5, stream=True
        ) as stream:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        return text, fake_chat_words(messages, 6 + i % 5)

    for said, wanted in await asyncio.gather(*(ask(i) for i in range(24))):
        assert said == wanted


async def test_the_async_client_gets_whole_answers_too(async_client: AsyncOpenAI) -> None:
    answer = await async_client.chat.completions.create(model="echo", messages=ASK, max_tokens=3)

    assert answer.choices[0].message.content == fake_chat_words(ASK, 3)


def test_models_are_listed_with_their_aliases_and_read_by_either_name(client: OpenAI) -> None:
    listed = {model.id for model in client.models.list()}

    assert {"echo", "parrot", "slow", "narrow"} <= listed
    assert client.models.retrieve("parrot").id == "parrot"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("ecco")


def test_a_file_that_was_uploaded_is_part_of_the_prompt_until_it_is_deleted(client: OpenAI) -> None:
    name = client.files.create(file=("notes.md", b"# Buy milk\n"), purpose="user_data").id
    part: Any = {"type": "file", "file": {"file_id": name}}
    ask: Any = [{"role": "user", "content": [{"type": "text", "text": "See:\n"}, part]}]
    text = 'See:\n<file name="notes.md">\n# Buy milk\n</file>\n'

    answer = client.chat.completions.create(model="echo", messages=ask, max_tokens=5)

    assert answer.choices[0].message.content == fake_chat_words(
        [{"role": "user", "content": text}], 5
    )
    client.files.delete(name)
    with pytest.raises(openai.NotFoundError) as gone:
        client.chat.completions.create(model="echo", messages=ask, max_tokens=5)
    assert gone.value.param == "messages[0].content[1].file.file_id"


def test_a_prediction_changes_no_answer_and_is_told_in_usage(client: OpenAI) -> None:
    prediction: Any = {"type": "content", "content": fake_chat_words(ASK, 7)}
    answer = client.chat.completions.create(
        model="echo", messages=ASK, max_tokens=7, prediction=prediction
    )

    assert answer.choices[0].message.content == fake_chat_words(ASK, 7)
    assert answer.usage is not None
    details = answer.usage.completion_tokens_details
    assert details is not None
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (0, 0)
