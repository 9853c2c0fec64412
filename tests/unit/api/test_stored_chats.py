"""Chats that are stored: found again by who may, under the labels that they have now, and by nobody else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from llmhost.config.schema import Settings
from llmhost.config.schema.state import StateSettings
from llmhost.storage.connect import StorageFailed
from llmhost.testing import FAKE_MODEL, TestHost, at, make_host

PATH = "/v1/chat/completions"
NO_LABELS: Mapping[str, str] = {}


async def stored(
    host: TestHost,
    text: str = "hello",
    key: str = "any",
    metadata: Mapping[str, str] = NO_LABELS,
    **body: Any,
) -> dict[str, Any]:
    """A chat that was stored, as it was answered."""
    messages = [{"role": "user", "content": text}]
    asked = {"model": "fake", "messages": messages, "max_tokens": 3, "store": True, **body}
    response = await host.client.post(
        PATH, json={**asked, "metadata": metadata}, headers=bearer(key)
    )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def get(host: TestHost, path: str = "", key: str = "any", **params: Any) -> httpx.Response:
    return await host.client.get(f"{PATH}{path}", params=params, headers=bearer(key))


def ids(page: httpx.Response) -> list[str]:
    assert page.status_code == 200, page.text
    return [chat["id"] for chat in page.json()["data"]]


async def test_a_stored_chat_is_its_answer_with_what_was_asked() -> None:
    async with make_host() as host:
        answer = await stored(host, metadata={"project": "atlas"}, temperature=0.5, seed=7)
        found = (await get(host, f"/{answer['id']}")).json()
        messages = (await get(host, f"/{answer['id']}/messages")).json()

    assert {name: found[name] for name in answer} == answer
    assert found["metadata"] == {"project": "atlas"}
    assert (found["temperature"], found["seed"], found["tools"]) == (0.5, 7, None)
    assert found["request_id"].startswith("req_")
    assert [(one["id"], one["role"], one["content"]) for one in messages["data"]] == [
        (f"{answer['id']}-0", "user", "hello")
    ]
    assert messages["first_id"] == messages["last_id"] == f"{answer['id']}-0"


async def test_a_stream_is_stored_as_the_whole_that_it_was() -> None:
    async with make_host() as host:
        whole = await stored(host, n=2)
        messages = [{"role": "user", "content": "hello"}]
        body = {"model": "fake", "messages": messages, "max_tokens": 3, "n": 2}
        told = await host.client.post(PATH, json={**body, "store": True, "stream": True})
        assert told.text.endswith("data: [DONE]\n\n")
        (streamed,) = (await get(host, order="desc", limit=1)).json()["data"]

    assert streamed["choices"] == whole["choices"]
    usage = dict(streamed["usage"])
    assert usage.pop("prompt_tokens_details")
    assert usage.items() <= whole["usage"].items()
    assert streamed["id"] in told.text


async def test_what_was_not_to_be_stored_is_not_there() -> None:
    async with make_host() as host:
        await stored(host, store=False)
        answer = (await host.chat("hello", max_tokens=3)).json()

        assert ids(await get(host)) == []
        assert (await get(host, f"/{answer['id']}")).status_code == 404


async def test_lists_go_page_by_page_in_either_order_and_by_model_and_labels() -> None:
    models = {"fake": FAKE_MODEL, "other": FAKE_MODEL}
    async with make_host(models=models) as host:
        made = [
            (await stored(host, model=model, metadata={"n": str(n), "odd": str(n % 2)}))["id"]
            for n, model in enumerate(["fake", "other"] * 3)
        ]

        first = await get(host, limit=4)
        rest = await get(host, limit=4, after=made[3])
        assert (ids(first), first.json()["has_more"]) == (made[:4], True)
        assert (ids(rest), rest.json()["has_more"]) == (made[4:], False)
        assert (first.json()["first_id"], first.json()["last_id"]) == (made[0], made[3])
        assert ids(await get(host, order="desc", limit=2, after=made[3])) == [made[2], made[1]]
        assert ids(await get(host, model="other")) == made[1::2]
        assert ids(await get(host, **{"metadata[odd]": "0", "metadata[n]": "2"})) == [made[2]]
        assert ids(await get(host, **{"metadata[n]": "9"})) == []


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"limit": 0}, "limit"),
    ({"limit": 101}, "limit"),
    ({"limit": "many"}, "limit"),
    ({"order": "up"}, "order"),
    ({"after": "chatcmpl-1"}, "after"),
)


async def test_a_list_that_can_not_be_is_refused_by_name() -> None:
    async with make_host() as host:
        chat = await stored(host)
        for params, param in REFUSED:
            for path in ("", f"/{chat['id']}/messages"):
                refused = await get(host, path, **params)

                assert refused.status_code == 400, params
                assert param in refused.text


async def test_labels_change_and_a_deleted_chat_is_gone() -> None:
    async with make_host() as host:
        path = f"{PATH}/{(await stored(host, metadata={'a': '1'}))['id']}"
        changed = await host.client.post(path, json={"metadata": {"b": "2"}})
        refused = [
            await host.client.post(path, json=body)
            for body in ({"metadata": {"b": "x" * 513}}, {"metadata": {"b": 5}}, {})
        ]
        deleted = await host.client.delete(path)
        gone = [
            await host.client.get(path),
            await host.client.get(f"{path}/messages"),
            await host.client.post(path, json={"metadata": {}}),
            await host.client.delete(path),
        ]

    assert changed.json()["metadata"] == {"b": "2"}
    assert [one.status_code for one in refused] == [400] * 3
    assert all(one.json()["error"]["param"] == "metadata" for one in refused)
    assert deleted.json()["deleted"] is True
    assert [(one.status_code, one.json()["error"]["type"]) for one in gone] == [
        (404, "invalid_request_error")
    ] * 4


async def test_labels_that_can_not_be_are_refused() -> None:
    too_many = {str(n): "x" for n in range(17)}
    async with make_host() as host:
        for metadata in ({"a" * 65: "x"}, {"a": "x" * 513}, {"a": 1}, too_many, []):
            refused = await host.chat("hello", metadata=metadata)

            assert refused.status_code == 400, metadata
            assert refused.json()["error"]["param"].startswith("metadata")


SEEN = {
    "key": {"mine": True, "mate": False, "colleague": False, "stranger": False},
    "team": {"mine": True, "mate": True, "colleague": False, "stranger": False},
    "org": {"mine": True, "mate": True, "colleague": True, "stranger": False},
    "public": {"mine": True, "mate": True, "colleague": True, "stranger": False},
}
"""Who sees a chat, by the scope of the cache of the model that answered."""


async def test_those_see_a_stored_chat_who_share_the_models_cache() -> None:
    models = {scope: msgspec.structs.replace(FAKE_MODEL, cache_scope=scope) for scope in SEEN}
    async with make_host(models=models) as host:
        keys = {
            "mine": await host.make_key(team="search"),
            "mate": await host.make_key(team="search"),
            "colleague": await host.make_key(team="ads"),
            "stranger": await host.make_key("other", team="search"),
        }
        for scope, seen in SEEN.items():
            chat = await stored(host, key=keys["mine"], model=scope)
            for who, may_see in seen.items():
                path, key = f"/{chat['id']}", keys[who]
                assert (chat["id"] in ids(await get(host, key=key))) is may_see, (scope, who)
                assert (await get(host, path, key)).is_success is may_see
                assert (await get(host, f"{path}/messages", key)).is_success is may_see
                changed = await host.client.post(
                    PATH + path, json={"metadata": {}}, headers=bearer(key)
                )
                assert changed.is_success is may_see
                if not may_see:
                    deleted = await host.client.delete(PATH + path, headers=bearer(key))
                    assert deleted.status_code == 404
        assert (await get(host, key="lh-sk-none")).status_code == 401


async def test_an_organisation_that_stores_too_much_loses_its_oldest_and_nobody_elses() -> None:
    settings = Settings(state=StateSettings(chat_bytes_per_org=4000))
    async with make_host(settings=settings) as host:
        mine, other = await host.make_key(), await host.make_key("other")
        kept = await stored(host, key=other)
        made = [(await stored(host, "x" * 1000, mine))["id"] for _ in range(4)]
        left = ids(await get(host, key=mine))
        huge = await stored(host, "x" * 5000, mine)

        assert left == made[-len(left) :]
        assert 0 < len(left) < 4
        assert (await get(host, f"/{huge['id']}", mine)).status_code == 404
        assert ids(await get(host, key=other)) == [kept["id"]]


async def test_what_is_too_old_is_forgotten() -> None:
    clock = at("2026-01-10T03:00Z")
    async with make_host(clock=clock) as host:
        await stored(host)
        clock.advance(60)
        young = await stored(host)

        assert await host.host.chats.forget(clock.utc_ns() - 30 * 10**9) == 1
        assert ids(await get(host)) == [young["id"]]


async def test_an_answer_that_can_not_be_stored_is_given_all_the_same(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> bool:
        raise StorageFailed(Path("state.db"), OSError(28, "No space left on device"))

    async with make_host() as host:
        monkeypatch.setattr(host.host.chats, "keep", full)
        answer = await stored(host)

    assert answer["choices"][0]["message"]["content"]
    assert "chat.not_stored" in caplog.text
