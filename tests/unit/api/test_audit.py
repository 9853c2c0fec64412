"""The audit log on a node: what admins change is written down by itself, whatever the route."""

import json
import re
from typing import Any

from llmhost.api.audited import SAFE_METHODS, shown
from llmhost.core.caller import Role
from llmhost.testing import TestHost, make_host


def admin(host: TestHost) -> dict[str, str]:
    return {"authorization": f"Bearer {host.host.admin_token}"}


async def rows(host: TestHost, **query: str) -> list[dict[str, Any]]:
    answer = await host.client.get("/admin/v1/audit", params=query, headers=admin(host))
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


async def test_what_the_operator_changes_is_in_the_log_and_no_secret_is() -> None:
    async with make_host() as host:
        await host.client.post("/admin/v1/orgs", json={"name": "acme"}, headers=admin(host))
        made = await host.client.post(
            "/admin/v1/keys", json={"org": "acme", "name": "ci"}, headers=admin(host)
        )
        key = made.json()
        await host.client.patch(
            f"/admin/v1/keys/{key['id']}", json={"name": "cd"}, headers=admin(host)
        )
        found = await rows(host)

    assert [row["action"] for row in found] == ["update_key", "create_key", "create_org"]
    update, create, _ = found
    assert (create["actor"], create["org"], create["target"]) == (
        "operator",
        "acme",
        "/admin/v1/keys",
    )
    assert create["detail"] == {
        "method": "POST",
        "status": 201,
        "body": {"org": "acme", "name": "ci"},
        "id": key["id"],
    }
    assert update["target"] == f"/admin/v1/keys/{key['id']}"
    assert key["key"] not in json.dumps(found)


async def test_what_was_refused_is_in_the_log_with_its_status() -> None:
    async with make_host() as host:
        key = await host.make_key(role=Role.BILLING)
        asked = {"json": {"name": "x"}, "headers": {"authorization": f"Bearer {key}"}}
        assert (await host.client.post("/admin/v1/orgs", **asked)).status_code == 403
        bad = await host.client.post("/admin/v1/orgs", json={"nme": 1}, headers=admin(host))
        found = await rows(host)

    assert [row["detail"]["status"] for row in found] == [bad.status_code, 403]
    assert found[1]["actor"] != "operator"
    assert found[1]["org"] == "acme"


async def test_strangers_and_readers_leave_no_rows() -> None:
    async with make_host() as host:
        await host.client.post("/admin/v1/orgs", json={"name": "x"})
        await host.client.get("/admin/v1/orgs", headers=admin(host))

        assert await rows(host) == []


async def test_an_admin_sees_the_rows_of_its_own_organisation_alone() -> None:
    async with make_host() as host:
        for org in ("acme", "zenith"):
            body = {"org": org, "role": "admin"}
            await host.client.post("/admin/v1/orgs", json={"name": org}, headers=admin(host))
            key = (await host.client.post("/admin/v1/keys", json=body, headers=admin(host))).json()
        theirs = {"authorization": f"Bearer {key['key']}"}
        seen = (await host.client.get("/admin/v1/audit", headers=theirs)).json()["data"]
        other = await host.client.get("/admin/v1/audit?org=acme", headers=theirs)
        exported = await host.client.get("/admin/v1/audit/export", headers=theirs)
        verify = await host.client.get("/admin/v1/audit/verify", headers=theirs)

    assert {row["org"] for row in seen} == {"zenith"}
    assert [json.loads(line) for line in exported.text.splitlines()] == seen[::-1]
    assert (other.status_code, verify.status_code) == (404, 403)


async def test_a_list_is_paged_from_the_newest_to_the_oldest() -> None:
    async with make_host() as host:
        for number in range(5):
            body = {"name": f"org{number}"}
            await host.client.post("/admin/v1/orgs", json=body, headers=admin(host))
        found, query = [], {"limit": "2"}
        while True:
            page = await host.client.get("/admin/v1/audit", params=query, headers=admin(host))
            found += page.json()["data"]
            if not page.json()["has_more"]:
                break
            query["after"] = page.json()["last_id"]
        wrong = [
            (await host.client.get(f"/admin/v1/audit?{query}", headers=admin(host))).status_code
            for query in ("limit=0", "after=x", "since=never", "after=" + "9" * 40)
        ]

    assert [row["id"] for row in found] == ["5", "4", "3", "2", "1"]
    assert wrong == [400] * 4


async def test_the_log_verifies_and_names_the_head_that_it_can_be_held_to_later() -> None:
    async with make_host() as host:
        await host.client.post("/admin/v1/orgs", json={"name": "acme"}, headers=admin(host))
        first = await host.client.get("/admin/v1/audit/verify", headers=admin(host))
        head = first.json()["head"]
        await host.client.post("/admin/v1/orgs", json={"name": "zenith"}, headers=admin(host))
        again = await host.client.get(f"/admin/v1/audit/verify?head={head}", headers=admin(host))
        other = f"2:{head[2:]}"
        wrong = await host.client.get(f"/admin/v1/audit/verify?head={other}", headers=admin(host))
        unread = await host.client.get("/admin/v1/audit/verify?head=7", headers=admin(host))

    assert first.json() | {"head": ""} == {
        **{"ok": True, "rows": 1, "pruned": 0, "head": "", "row": None, "problem": None}
    }
    assert again.json()["ok"] is True
    assert (wrong.json()["ok"], wrong.json()["row"]) == (False, 2)
    assert unread.status_code == 400


async def test_while_nothing_can_be_written_down_nothing_is_changed(monkeypatch) -> None:
    async with make_host() as host:
        trail = host.host.audit.trail
        monkeypatch.setattr(type(trail), "health", property(lambda _: OSError("full")))
        monkeypatch.setattr(
            host.host.audit, "check_writable", lambda: (_ for _ in ()).throw(_refusal(host))
        )
        refused = await host.client.post(
            "/admin/v1/orgs", json={"name": "acme"}, headers=admin(host)
        )
        seen = await host.client.get("/admin/v1/orgs", headers=admin(host))

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_failed")
    assert seen.json()["data"] == []


def _refusal(host: TestHost) -> Exception:
    from llmhost.storage.connect import StorageFailed

    return StorageFailed(host.host.data_dir.audit_db, OSError("no space left"))


async def test_every_route_of_admins_that_changes_something_is_written_down() -> None:
    async with make_host() as host:
        document = (await host.client.get("/schema")).json()
        operations = [
            (method.upper(), re.sub(r"{[^}]*}", "none", path))
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
            if "admin" in operation.get("tags", ()) or path.startswith("/admin")
        ]
        changing = [one for one in operations if one[0] not in SAFE_METHODS]
        for method, path in changing:
            await host.client.request(method, path, json={"nothing": 1}, headers=admin(host))
        found = await rows(host, limit="1000")

    assert len(changing) > 20
    told = {(row["detail"]["method"], row["target"]) for row in found}
    assert told == set(changing)


def test_a_body_is_shown_without_what_is_long_nested_or_secret() -> None:
    body = {
        "token": "x",
        "key": "lh-sk-x",
        "text": "x" * 201,
        "rows": [1, "a", {"b": 1}],
        "deep": {"a": 1},
    }

    assert shown(body) == {
        "key": "a key",
        "text": "201 characters",
        "rows": [1, "a", "1 items"],
        "deep": "1 items",
    }
