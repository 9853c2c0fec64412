"""What the gatekeeper says to those it keeps out, and whom it lets pass all the same."""

from llmhost.config.schema import Settings
from llmhost.config.schema.limits import LimitSettings
from llmhost.testing import TestHost, make_host

STRICT = Settings(limits=LimitSettings(failed_auth_per_minute=1))
BODY = {"model": "fake", "prompt": "hello", "max_tokens": 1}


async def asked(host: TestHost, key: str, path: str = "/v1/completions", size: int = 0) -> int:
    headers = {"authorization": f"Bearer {key}", "origin": "http://localhost:3000"}
    body = {**BODY, "user": "x" * size}
    answer = await host.client.post(path, json=body, headers=headers)
    if answer.status_code == 429:
        assert ("access-control-allow-origin" in answer.headers) is path.startswith("/v1")
        assert answer.headers["x-request-id"].startswith("req_")
        assert answer.headers["x-should-retry"] == "true"
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert (answer.headers.get("connection") == "close") is (size > 0)
    return answer.status_code


async def test_every_route_that_needs_a_key_counts_and_is_closed() -> None:
    paths = (
        "/v1/completions",
        "/v1/embeddings",
        "/rerank",
        "/v1/load_lora_adapter",
        "/admin/v1/keys",
    )
    for first in paths:
        async with make_host(settings=STRICT) as host:
            await host.make_key()
            assert await asked(host, "wrong", first) == 401
            for path in paths:
                assert await asked(host, "wrong", path) == 429, (first, path)
            assert await asked(host, "wrong", size=100_000) == 429
            assert (await host.client.get("/ready")).status_code == 200


async def test_a_wrong_key_on_an_open_route_becomes_no_right_one() -> None:
    async with make_host(settings=STRICT) as host:
        await host.make_key()
        headers = {"authorization": "Bearer guess"}
        for path in ("/health", "/metrics", "/v1/nothing"):
            await host.client.get(path, headers=headers)
        assert await asked(host, "wrong") == 401
        assert await asked(host, "guess") == 429


async def test_whoever_had_a_right_key_goes_on() -> None:
    async with make_host(settings=STRICT) as host:
        key, unused = await host.make_key(), await host.make_key()
        assert await asked(host, key) == 200
        assert await asked(host, "wrong") == 401
        assert [await asked(host, one) for one in (key, unused)] == [200, 429]
        answer = await host.client.get(
            "/admin/v1/keys", headers={"authorization": f"Bearer {host.host.admin_token}"}
        )
        assert answer.status_code == 200


async def test_a_right_key_that_may_not_enter_is_no_stranger() -> None:
    async with make_host(settings=STRICT) as host:
        headers = {"authorization": f"Bearer {await host.make_key()}"}
        for path in ("/admin/v1/keys", "/admin/v1/ps", "/admin/v1/costs"):
            assert (await host.client.get(path, headers=headers)).status_code == 403, path


async def test_a_node_without_keys_on_loopback_has_no_strangers() -> None:
    async with make_host(settings=STRICT) as host:
        assert [await asked(host, "anything") for _ in range(3)] == [200] * 3
