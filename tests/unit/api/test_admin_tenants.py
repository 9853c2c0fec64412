"""The admin routes of tenants, asked for things that make no sense, and for many at once."""

import asyncio
import json
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from llmhost.api.admin_tenants import MOST_ROWS, page_of
from llmhost.core.errors import InvalidValue
from llmhost.testing import TestHost, make_host

NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 2**31, 2**63, 2**64, 10**30, -(10**30), 1.5, 1e308]),
    st.text(max_size=80),
    st.sampled_from(
        [
            "'; DROP TABLE keys; --",
            "\x00",
            "../../etc",
            "acme\u202e",
            "acme' OR '1'='1",
            "A" * 5000,
            "\ud83d",
            "%s%n",
            "acme/search",
            "*",
        ]
    ),
    st.lists(st.text(max_size=5), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
FIELDS = (
    *("org", "team", "name", "role", "models", "expires_at", "disabled", "archived", "overlap_s"),
    *("requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute"),
    "max_concurrency",
)
PLACES = (
    *(("POST", "/orgs"), ("POST", "/teams"), ("POST", "/keys"), ("PATCH", "/orgs/acme")),
    *(("PATCH", "/teams/acme/search"), ("PATCH", "/keys/{key}"), ("POST", "/keys/{key}/rotate")),
)


def operator(host: TestHost) -> dict[str, str]:
    return {"authorization": f"Bearer {host.host.admin_token}"}


async def made(host: TestHost) -> dict[str, Any]:
    """A key of acme/search, as the admin API makes it."""
    await host.host.books.keys.create_org("acme")
    body = {"org": "acme", "team": "search"}
    answer = await host.client.post("/admin/v1/keys", json=body, headers=operator(host))
    row: dict[str, Any] = answer.json()
    return row


@settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # to make a failure smaller would take minutes
)
@given(
    bodies=st.lists(
        st.tuples(
            st.sampled_from(PLACES),
            st.dictionaries(st.sampled_from(FIELDS), NASTY, max_size=4),
        ),
        min_size=80,
        max_size=80,
    ),
    words=st.lists(st.text(max_size=60), min_size=20, max_size=20),
)
async def test_no_hostile_body_name_or_query_is_our_mistake(
    bodies: list[tuple[tuple[str, str], dict[str, Any]]], words: list[str]
) -> None:
    async with make_host() as host:
        key = await made(host)
        answers: list[httpx.Response] = []
        for (method, path), body in bodies:
            url = f"/admin/v1{path.format(key=key['id'])}"
            text = json.dumps(body)  # half a character stays one, as an escape
            answers.append(
                await host.client.request(method, url, content=text, headers=operator(host))
            )
        for word in words:
            query = {"org": word, "after": word, "limit": word}
            for name in query:
                answers.append(
                    await host.client.get(
                        "/admin/v1/keys", params={name: query[name]}, headers=operator(host)
                    )
                )
        for answer in answers:
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        orgs = [org.name for org in host.host.books.keys.list_orgs()]
        assert orgs[0] == "acme"


async def test_changes_and_requests_at_once_end_in_a_revoked_key_and_nothing_broken() -> None:
    async with make_host() as host:
        key = await made(host)
        url, admin = f"/admin/v1/keys/{key['id']}", operator(host)

        async def ask() -> int:
            headers = {"authorization": f"Bearer {key['key']}"}
            body = {"model": "fake", "prompt": "x", "max_tokens": 1}
            answer = await host.client.post("/v1/completions", json=body, headers=headers)
            return answer.status_code

        async def act(number: int) -> int:
            if number == 25:
                return (await host.client.delete(url, headers=admin)).status_code
            if number % 2:
                wish = {"overlap_s": 3600}
                return (
                    await host.client.post(f"{url}/rotate", json=wish, headers=admin)
                ).status_code
            change = {"name": f"n{number}", "disabled": False}
            return (await host.client.patch(url, json=change, headers=admin)).status_code

        asked, acted = await asyncio.gather(
            asyncio.gather(*(ask() for _ in range(50))),
            asyncio.gather(*(act(number) for number in range(50))),
        )

        assert set(asked) <= {200, 401}
        assert set(acted) <= {200, 409}
        assert acted[25] == 200
        assert await ask() == 401
        shown = (await host.client.get(url, headers=admin)).json()
        assert shown["state"] == "revoked"


async def test_the_schema_says_what_each_route_takes_and_gives() -> None:
    async with make_host() as host:
        schema = (await host.client.get("/admin/openapi/openapi.json")).json()

    shapes = schema["components"]["schemas"]
    for path in ("orgs", "teams", "keys"):
        content = schema["paths"][f"/admin/v1/{path}"]["get"]["responses"]["200"]["content"]
        name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert set(shapes[name]["required"]) == {"data", "has_more", "last_id"}
    assert set(shapes["KeyChange"]["properties"]) == {
        *("name", "role", "models", "expires_at", "disabled", "requests_per_minute"),
        *("input_tokens_per_minute", "output_tokens_per_minute", "max_concurrency"),
    }
    assert shapes["KeyChange"].get("required", []) == []
    assert "key" in shapes["SecretRow"]["properties"]
    assert "key" not in shapes["KeyRow"]["properties"]


@given(
    count=st.integers(0, 40),
    limit=st.integers(1, 12),
)
def test_pages_tile_a_list(count: int, limit: int) -> None:
    rows = [str(number) for number in range(count)]
    found: list[str] = []
    has_more = True
    while has_more:
        page, has_more = page_of(rows, str, limit, found[-1] if found else None)
        assert len(page) == limit or not has_more
        found += page

    assert found == rows


@given(limit=st.integers().filter(lambda limit: not 1 <= limit <= MOST_ROWS))
def test_a_page_of_no_size_is_refused(limit: int) -> None:
    try:
        page_of([], str, limit, None)
    except InvalidValue as error:
        assert error.param == "limit"
    else:
        raise AssertionError
