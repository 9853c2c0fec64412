"""Policies of organisations on a node: what a caller may say depends on them from the next request on."""

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmhost.config.schema import Settings
from llmhost.config.schema.safety import SafetySettings
from llmhost.config.schema.server import ServerSettings
from llmhost.core.caller import Role
from llmhost.safety.policy_store import PolicyStore
from llmhost.safety.screen import Screen
from llmhost.testing import TestHost, make_host

SETTINGS = Settings(
    server=ServerSettings(drain_timeout_s=5.0),
    safety=SafetySettings(blocked_words=("forbidden",)),
)


def admin(host: TestHost) -> dict[str, str]:
    return {"authorization": f"Bearer {host.host.admin_token}"}


async def put(host: TestHost, policy: dict[str, Any], **more: Any) -> httpx.Response:
    return await host.client.post(
        "/admin/v1/orgs/acme/policies", json={"policy": policy, **more}, headers=admin(host)
    )


async def act(host: TestHost, method: str, path: str, **more: Any) -> httpx.Response:
    path = f"/admin/v1/orgs/acme/policies{path}"
    return await host.client.request(method, path, headers=admin(host), **more)


async def says(host: TestHost, key: str, text: str) -> int:
    answer = await host.client.post(
        "/v1/chat/completions",
        json={"model": "fake", "max_tokens": 2, "messages": [{"role": "user", "content": text}]},
        headers={"authorization": f"Bearer {key}"},
    )
    return answer.status_code


async def test_a_policy_holds_from_the_next_request_on_for_its_organisation_alone() -> None:
    async with make_host(settings=SETTINGS) as host:
        acme, zenith = await host.make_key("acme"), await host.make_key("zenith")
        assert await says(host, acme, "a forbidden thing") == 400

        made = await put(host, {"input": {"words": "warn"}, "words": ["manhattan"]}, note="lax")
        assert made.status_code == 201
        assert made.json()["id"] == "acme@1"
        assert await says(host, acme, "a forbidden thing") == 200
        assert await says(host, zenith, "a forbidden thing") == 400
        assert await says(host, zenith, "manhattan") == 200

        await put(host, {"words": ["manhattan"]})
        assert await says(host, acme, "project Manhattan") == 400

        back = await act(host, "POST", "/1/activate")
        assert back.json() == {"id": "acme@1", "org": "acme", "version": 1}
        assert await says(host, acme, "project Manhattan") == 200
        none = await act(host, "POST", "/default/activate")
        assert none.json()["version"] is None
        assert await says(host, acme, "a forbidden thing") == 400


async def test_versions_and_what_holds_outlive_the_process(tmp_path: Path) -> None:
    async with make_host(settings=SETTINGS, data_dir=tmp_path) as host:
        key = await host.make_key("acme")
        await put(host, {"input": {"words": "allow"}})
        await put(host, {"input": {"words": "block"}}, activate=False)
    async with make_host(settings=SETTINGS, data_dir=tmp_path) as host:
        assert await says(host, key, "forbidden") == 200
        rows = (await act(host, "GET", "")).json()["data"]
        shown = (await act(host, "GET", "/active")).json()

    assert [(row["id"], row["active"]) for row in rows] == [("acme@1", True), ("acme@2", False)]
    assert shown["policy"]["input"] == {"words": "allow"}
    assert shown["made_by"] == "operator"


async def test_each_version_and_activation_is_in_the_audit_log() -> None:
    async with make_host(settings=SETTINGS) as host:
        await host.make_key("acme")
        await put(host, {"input": {"words": "warn"}})
        await act(host, "POST", "/default/activate")
        path = "/admin/v1/audit?kind=policy&org=acme"
        rows = (await host.client.get(path, headers=admin(host))).json()["data"]

    assert [(row["action"], row["detail"]["version"]) for row in rows] == [
        ("policy.activated", None),
        ("policy.activated", 1),
        ("policy.created", 1),
    ]


async def test_a_dry_run_says_what_would_have_become_of_what_was_screened() -> None:
    async with make_host(settings=SETTINGS) as host:
        key = await host.make_key("acme")
        for text in ("forbidden one", "hello", "forbidden two"):
            await says(host, key, text)
        same = await act(host, "POST", "/dry-run", json={"policy": {}})
        lax = await act(host, "POST", "/dry-run", json={"policy": {"input": {"*": "warn"}}})
        later = await act(
            host,
            "POST",
            "/dry-run",
            json={"policy": {"input": {"*": "warn"}}, "since": "2200-01-01"},
        )
        wrong = [
            (await act(host, "POST", "/dry-run", json=body)).status_code
            for body in ({}, {"version": 1}, {"version": 1, "policy": {}}, {"policy": {"x": 1}})
        ]

    assert (same.json()["screenings"], same.json()["changed"]) == (2, 0)
    assert lax.json()["moves"] == [{"before": "block", "after": "warn", "count": 2}]
    assert [one["rule"] for one in lax.json()["examples"]] == ["blocked_words[0]"] * 2
    assert later.json()["screenings"] == 0
    assert wrong == [400, 404, 400, 400]


async def test_keys_see_their_own_policies_and_change_none() -> None:
    async with make_host(settings=SETTINGS) as host:
        await host.make_key("acme")
        await put(host, {"input": {"words": "warn"}})
        key = await host.make_key("acme", role=Role.ADMIN)
        other = await host.make_key("zenith", role=Role.ADMIN)
        member = await host.make_key("acme")
        found = []
        for token in (key, other, member):
            headers = {"authorization": f"Bearer {token}"}
            for method, path, body in (
                ("GET", "", None),
                ("GET", "/1", None),
                ("POST", "/dry-run", {"version": 1}),
                ("POST", "", {"policy": {}}),
                ("POST", "/1/activate", None),
            ):
                path = f"/admin/v1/orgs/acme/policies{path}"
                answer = await host.client.request(method, path, json=body, headers=headers)
                found.append(answer.status_code)

    assert found == [200, 200, 200, 403, 403, 404, 404, 404, 403, 403, *[403] * 5]


@pytest.mark.parametrize(
    ("policy", "param"),
    [
        ({"words": ["x", " "]}, "policy.words[1]"),
        ({"input": {"pii": {}}}, "policy.input.pii"),
    ],
)
async def test_what_is_no_policy_is_refused_by_name(policy: dict, param: str) -> None:
    async with make_host(settings=SETTINGS) as host:
        await host.make_key("acme")
        answer = await put(host, policy)
        listed = await act(host, "GET", "")
        unknown = [
            (await act(host, "GET", path)).status_code for path in ("/1", "/0", "/x", "/active")
        ]

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert listed.json()["data"] == []
    assert unknown == [404] * 4


async def test_words_are_compiled_off_the_loop_before_they_hold(monkeypatch) -> None:
    threads: list[str] = []
    known = Screen.prepare

    def prepare(self: Screen, policy: Any) -> None:
        threads.append(threading.current_thread().name)
        known(self, policy)

    monkeypatch.setattr(Screen, "prepare", prepare)
    async with make_host(settings=SETTINGS) as host:
        key = await host.make_key("acme")
        await put(host, {"words": [f"word{number}" for number in range(500)]})
        assert await says(host, key, "word499") == 400

    assert threads
    assert threading.main_thread().name not in threads


async def test_what_the_disk_refuses_does_not_hold(monkeypatch) -> None:
    async with make_host(settings=SETTINGS) as host:
        await host.make_key("acme")

        async def fail(*_: Any) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(type(host.host.audit.trail), "together", fail)
        store: PolicyStore = host.host.policies
        from llmhost.safety.policy import PolicyBody

        with pytest.raises(OSError, match="no space"):
            await store.create("acme", PolicyBody(), who="operator", activate=True)
        assert (store.versions("acme"), store.in_force("acme")) == ((), None)
