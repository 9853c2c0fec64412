"""The Responses API in a whole node in this process: what goes on with what, what is refused, what is forgotten."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from llmhost.api.responses import runs
from llmhost.config.schema import Settings
from llmhost.config.schema.limits import ModelLimitSettings
from llmhost.config.schema.state import StateSettings
from llmhost.core.errors import Overloaded
from llmhost.storage.connect import StorageFailed
from llmhost.storage.responses import Kept
from llmhost.testing import FAKE_MODEL, ManualClock, TestHost, at, fake_chat_words, make_host

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER: Any = {"role": "user", "content": "say something"}
ANSWER = fake_chat_words([USER], 3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host() -> AsyncIterator[TestHost]:
    models = {
        "fake": FAKE_MODEL,
        "narrow": msgspec.structs.replace(FAKE_MODEL, max_sequence_length=48),
    }
    async with make_host(models=models) as made:
        yield made


async def ask(host: TestHost, **body: Any) -> httpx.Response:
    known = {"model": "fake", "input": [USER], "max_output_tokens": 3, **body}
    return await host.client.post("/v1/responses", json=known)


async def told(host: TestHost, **body: Any) -> dict[str, Any]:
    answer = await ask(host, **body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def text_of(response: dict[str, Any]) -> str:
    return "".join(item["content"][0]["text"] for item in response["output"])


async def test_a_response_goes_on_with_all_before_it_but_its_instructions(host: TestHost) -> None:
    first = await told(host, instructions="be kind")
    second = await told(host, previous_response_id=first["id"])
    third = await told(host, previous_response_id=second["id"], instructions="be brief")

    said = [USER, {"role": "assistant", "content": text_of(first)}, USER]
    assert text_of(first) == fake_chat_words([{"role": "system", "content": "be kind"}, USER], 3)
    assert text_of(second) == fake_chat_words(said, 3)
    brief = {"role": "system", "content": "be brief"}
    more = [brief, *said, {"role": "assistant", "content": text_of(second)}, USER]
    assert text_of(third) == fake_chat_words(more, 3)


async def test_items_by_reference_are_those_that_were_kept(host: TestHost) -> None:
    first = await told(host)
    item = {"type": "item_reference", "id": first["output"][0]["id"]}

    again = await told(host, input=[USER, item, USER])

    assert again["usage"] == (await told(host, previous_response_id=first["id"]))["usage"]


async def test_what_is_not_stored_is_nowhere(host: TestHost) -> None:
    made = await told(host, store=False)

    assert made["store"] is False
    assert (await host.client.get(f"/v1/responses/{made['id']}")).status_code == 404
    assert (await ask(host, previous_response_id=made["id"])).status_code == 400


async def test_a_chain_without_one_of_its_links_is_broken(host: TestHost) -> None:
    first = await told(host)
    second = await told(host, previous_response_id=first["id"])
    await host.client.delete(f"/v1/responses/{first['id']}")

    refused = await ask(host, previous_response_id=second["id"])

    assert refused.json()["error"]["code"] == "previous_response_not_found"


LARK = {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"model": None}, "missing_required_parameter", "model"),
    ({"input": None}, "missing_required_parameter", "input"),
    ({"input": []}, "invalid_value", "input"),
    ({"input": []}, "invalid_value", "input"),
    ({"input": 7}, "invalid_value", "input"),
    ({"input": [USER, {"role": "nobody"}]}, "invalid_value", "input[1].role"),
    ({"input": [USER, None]}, "invalid_value", "input[1]"),
    ({"input": [{}]}, "missing_required_parameter", "input[0].role"),
    ({"input": [{"content": "hi"}]}, "missing_required_parameter", "input[0].role"),
    ({"input": [{"role": "user"}]}, "missing_required_parameter", "input[0].content"),
    ({"input": [{"type": "item_reference"}]}, "missing_required_parameter", "input[0].id"),
    (
        {"input": [{"role": "user", "content": [{"text": "hi"}]}]},
        *("missing_required_parameter", "input[0].content[0].type"),
    ),
    (
        {"input": [{"type": "function_call", "call_id": "c"}]},
        *("missing_required_parameter", "input[0].arguments"),
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        *("unsupported_parameter", "input[0].content[0].type"),
    ),
    ({"input": [{"type": "web_search_call"}]}, "unsupported_parameter", "input[0].type"),
    ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].name"),
    (
        {"tools": [{"type": "function", "name": "f", "parameters": {"type": "string"}}]},
        *("invalid_function_parameters", "tools[0].parameters"),
    ),
    ({"tools": [{"type": "custom"}]}, "missing_required_parameter", "tools[0].name"),
    (
        {"tools": [{"type": "custom", "name": "c", "format": {"type": "grammar"}}]},
        *("missing_required_parameter", "tools[0].format.syntax"),
    ),
    (
        {"tools": [{"type": "custom", "name": "c", "format": LARK}]},
        *("unsupported_parameter", "tools"),  # this model has no calls of its own
    ),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
    ({"tool_choice": {"type": "file_search"}}, "unsupported_parameter", "tool_choice.type"),
    (
        {"text": {"format": {"type": "json_schema", "name": "x"}}},
        *("missing_required_parameter", "text.format.schema"),
    ),
    ({"text": {"format": {"type": "xml"}}}, "unsupported_parameter", "text.format.type"),
    ({"max_tokens": 3}, "unsupported_parameter", "max_tokens"),
    ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
    ({"temperature": 3}, "invalid_value", "temperature"),
    ({"top_logprobs": 21}, "invalid_value", "top_logprobs"),
    ({"include": ["everything"]}, "invalid_value", "include[0]"),
    ({"metadata": {"a": 1}}, "invalid_value", "metadata"),
    ({"metadata": {str(n): "" for n in range(17)}}, "invalid_value", "metadata"),
    ({"background": True, "store": False}, "invalid_value", "background"),
    ({"conversation": "c", "previous_response_id": "r"}, "invalid_value", "conversation"),
    ({"previous_response_id": "resp_x"}, *("previous_response_not_found", "previous_response_id")),
    ({"prompt": {"id": "p"}}, "unsupported_parameter", "prompt"),
    ({"input": "word " * 9000, "model": "narrow"}, "context_length_exceeded", "input"),
]


@pytest.mark.parametrize(("body", "code", "param"), WRONG)
async def test_what_is_wrong_is_refused_by_its_name(
    host: TestHost, body: dict[str, Any], code: str, param: str
) -> None:
    refused = await ask(host, **body)

    assert refused.status_code == 400
    assert (refused.json()["error"]["code"], refused.json()["error"]["param"]) == (code, param)


TOLD: list[tuple[dict[str, Any], str]] = [
    ({"input": 7}, "Expected 'str | array | null'"),
    ({"input": [{"role": "nobody", "content": "hi"}]}, "it may be assistant, developer, system"),
    ({"input": [{"content": "hi"}]}, "'input[0].role'"),
    (
        {"tools": [{"type": "function", "name": "f"}], "tool_choice": "maybe"},
        'such as {"type": "function", "name": "get_weather"}',
    ),
]


@pytest.mark.parametrize(("body", "words"), TOLD)
async def test_a_refusal_says_what_this_route_takes(
    host: TestHost, body: dict[str, Any], words: str
) -> None:
    assert words in (await ask(host, **body)).json()["error"]["message"]


async def test_what_runs_at_once_may_be_asked_to_run_soonest(host: TestHost) -> None:
    soonest = {"completion_window": "soonest", "continuation_id": "mine"}

    assert text_of(await told(host, background_options=soonest)) == ANSWER


async def test_turns_are_left_out_from_the_beginning_when_that_is_allowed(host: TestHost) -> None:
    long = [{"role": "user", "content": f"turn {n} is long"} for n in range(30)]

    refused = await ask(host, model="narrow", input=long)
    made = await told(host, model="narrow", input=long, truncation="auto", instructions="be kind")

    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert made["truncation"] == "auto"
    assert 30 < made["usage"]["input_tokens"] <= 45


async def test_prompts_of_callers_beyond_their_limits_are_not_read_to_cut_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    narrow = msgspec.structs.replace(
        FAKE_MODEL, max_sequence_length=48, limits=ModelLimitSettings(requests_per_minute=1)
    )
    async with make_host(models={"narrow": narrow}) as host:
        long = {"model": "narrow", "input": [USER] * 30, "truncation": "auto"}
        await told(host, **long)
        resolve, read = host.host.processor._stages.resolve, list[str]()
        monkeypatch.setattr(resolve, "read", lambda context, _: read.append(context.model))
        refused = await ask(host, **long)

    assert (refused.status_code, read) == (429, [])
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert "retry-after" in refused.headers


async def test_one_that_runs_is_not_gone_on_with(host: TestHost) -> None:
    slow = await told(host, background=True, max_output_tokens=10_000)

    refused = await ask(host, previous_response_id=slow["id"])
    cancelled = await host.client.post(f"/v1/responses/{slow['id']}/cancel")

    assert refused.json()["error"]["param"] == "previous_response_id"
    assert cancelled.json()["status"] in ("cancelled", "incomplete")
    assert (await host.client.post(f"/v1/responses/{slow['id']}/cancel")).json() == cancelled.json()


async def test_one_response_at_a_time_is_made_in_a_conversation(host: TestHost) -> None:
    name = (await host.client.post("/v1/conversations")).json()["id"]
    other = (await host.client.post("/v1/conversations")).json()["id"]
    slow = await told(host, background=True, max_output_tokens=10_000, conversation=name)

    refused = await ask(host, conversation={"id": name})
    beside = await ask(host, conversation=other)
    counted = await host.client.post(
        "/v1/responses/input_tokens", json={"model": "fake", "input": "x", "conversation": name}
    )
    await host.client.post(f"/v1/responses/{slow['id']}/cancel")
    unknown = await ask(host, conversation=name, model="none")
    later = await ask(host, conversation=name)

    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "conversation_locked")
    assert error["param"] == "conversation"
    assert [beside.status_code, counted.status_code] == [200, 200]
    assert [unknown.status_code, later.status_code] == [404, 200]
    items = (await host.client.get(f"/v1/conversations/{name}/items")).json()["data"]
    assert [item["role"] for item in items] == ["assistant", "user"], (
        "what was cancelled is not in it"
    )


async def test_only_what_ran_in_the_background_is_cancelled_or_streamed_again(
    host: TestHost,
) -> None:
    made = await told(host)
    path = f"/v1/responses/{made['id']}"

    for refused in (
        await host.client.post(f"{path}/cancel"),
        await host.client.get(path, params={"stream": "true"}),
        await host.client.get(path, params={"starting_after": 1}),
    ):
        assert refused.status_code == 400


async def test_lists_come_in_pages(host: TestHost) -> None:
    items = [{"role": "user", "content": str(n), "id": f"msg_{n}"} for n in range(5)]
    made = await told(host, input=items)
    path = f"/v1/responses/{made['id']}/input_items"

    page = (await host.client.get(path, params={"limit": 2, "order": "asc"})).json()
    rest = (await host.client.get(path, params={"after": "msg_1", "order": "asc"})).json()

    assert (page["first_id"], page["last_id"], page["has_more"]) == ("msg_0", "msg_1", True)
    assert [item["id"] for item in rest["data"]] == ["msg_2", "msg_3", "msg_4"]
    assert not rest["has_more"]
    newest = (await host.client.get(path, params={"limit": 1})).json()
    assert newest["first_id"] == "msg_4"
    for wrong in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "msg_9"}):
        assert (await host.client.get(path, params=wrong)).status_code in (400, 404)


async def test_a_response_is_metered_as_one(host: TestHost) -> None:
    answer = await ask(host)

    name = answer.headers["x-request-id"]
    (entry,) = [entry for entry in host.entries() if entry["request_id"] == name]
    assert entry["amount_nano"] == 4 * 100 + 3 * 400
    assert answer.headers["x-llmhost-cost-usd"] == "0.0000016"


async def test_an_estimate_knows_what_a_response_goes_on_with(host: TestHost) -> None:
    first = await told(host)
    body = {"model": "fake", "input": [USER], "max_output_tokens": 3, "endpoint": "responses"}

    alone, after = [
        (await host.client.post("/v1/estimate", json={**body, **more})).json()["prompt_tokens"]
        for more in ({}, {"previous_response_id": first["id"]})
    ]

    assert alone == first["usage"]["input_tokens"]
    assert after == (await told(host, previous_response_id=first["id"]))["usage"]["input_tokens"]


async def test_an_answer_that_cannot_be_kept_is_given_and_says_so(
    host: TestHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def full(_: object) -> None:
        raise StorageFailed(Path("state.db"), OSError("no space"))

    monkeypatch.setattr(host.host.responses.store, "end", full)
    made = await told(host)

    assert text_of(made) == ANSWER
    assert made["store"] is False
    assert "response.not_kept" in caplog.text


async def test_one_in_the_background_is_kept_as_soon_as_that_can_be_done(
    host: TestHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, tries = host.host.responses.store.end, list[object]()

    async def full_at_first(kept: Kept) -> None:
        tries.append(kept)
        if len(tries) < 3:
            raise Overloaded("10000 records are waiting")
        await end(kept)

    monkeypatch.setattr(runs, "AGAIN_S", 0.0)
    monkeypatch.setattr(host.host.responses.store, "end", full_at_first)
    made = await told(host, background=True, stream=False)
    path = f"/v1/responses/{made['id']}"
    events = (await host.client.get(path, params={"stream": "true"})).text
    found = (await host.client.get(path)).json()

    assert len(tries) == 3
    assert (found["status"], text_of(found), found["store"]) == ("incomplete", ANSWER, True)
    assert events.endswith("data: [DONE]\n\n")
    assert (await ask(host, previous_response_id=made["id"])).status_code == 200


async def test_what_would_keep_others_waiting_is_no_item_of_a_conversation(host: TestHost) -> None:
    parts = [{"type": "input_text", "text": ""}] * 70_000
    items = {"items": [{"role": "user", "content": parts}]}

    for path in ("/v1/conversations", "/v1/conversations/conv_any/items"):
        refused = await host.client.post(path, json=items)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "items"
    for wrong in ({"items": "x"}, {"items": 1}):
        refused = await host.client.post("/v1/conversations", json=wrong)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "items")
    for empty in (b"", b"null", b"{}"):
        assert (await host.client.post("/v1/conversations", content=empty)).status_code == 200


async def test_what_is_noted_of_keys_is_no_way_past_the_room_for_conversations(
    host: TestHost,
) -> None:
    path = f"/v1/conversations/{(await host.client.post('/v1/conversations')).json()['id']}/items"
    item = {"id": "msg_" + "a" * 100_000, "role": "user", "content": ""}
    before = noted_bytes(host)

    for number in range(3):  # it takes its own place each time
        headers = {"Idempotency-Key": f"key-{number}"}
        keyed = await host.client.post(path, json={"items": [item]}, headers=headers)
        assert (keyed.status_code, keyed.json()["error"]["param"]) == (400, "items")
    assert (await host.client.post(path, json={"items": [item]})).status_code == 200
    assert noted_bytes(host) == before


def noted_bytes(host: TestHost) -> int:
    """Of what calls with a key have made, which no scope's room has."""
    query = "SELECT coalesce(sum(length(object)), 0) FROM keyed_calls"
    with closing(sqlite3.connect(host.host.data_dir.state_db)) as connection:
        (size,) = connection.execute(query).fetchone()
    return int(size)


async def test_old_responses_are_forgotten_unless_younger_ones_go_on_with_them() -> None:
    clock: ManualClock = at("2026-01-01T00:00")
    async with make_host(clock=clock, settings=Settings(state=StateSettings(keep_days=1))) as host:
        lonely = await told(host)
        first = await told(host)
        held = (await host.client.post("/v1/conversations")).json()
        clock.advance(86_000)
        second = await told(host, previous_response_id=first["id"])
        clock.advance(1_000)

        forgotten = await host.host.responses.store.forget(clock.utc_ns() - 86_400 * 10**9)

        assert forgotten == 2
        assert (await host.client.get(f"/v1/responses/{lonely['id']}")).status_code == 404
        assert (await host.client.get(f"/v1/responses/{first['id']}")).status_code == 200
        assert (await host.client.get(f"/v1/conversations/{held['id']}")).status_code == 404
        assert (await ask(host, previous_response_id=second["id"])).status_code == 200


async def test_the_same_idempotency_key_makes_one_response(host: TestHost) -> None:
    body = {"model": "fake", "input": "hello", "max_output_tokens": 3, "background": True}
    headers = {"idempotency-key": "one"}

    first, second = await asyncio.gather(
        *(host.client.post("/v1/responses", json=body, headers=headers) for _ in range(2))
    )

    assert first.json() == second.json()
    assert first.json()["status"] == "queued"
