"""Around the application: which names it answers to, and which pages may call it."""

from typing import Any

import httpx
import pytest

from llmhost.api.edge import Edge, is_loopback


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"1")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def ask(
    method: str = "GET",
    path: str = "/v1/models",
    *,
    origins: tuple[str, ...] = (),
    loopback_only: bool = True,
    **headers: str,
) -> httpx.Response:
    edge: Any = Edge(echo, origins=origins, loopback_only=loopback_only)
    transport = httpx.ASGITransport(app=edge)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.request(method, path, headers=sent)


@pytest.mark.parametrize(
    ("host", "is_answered"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("127.0.0.1", True),
        ("127.0.0.1:8000", True),
        ("127.9.9.9:1", True),
        ("[::1]", True),
        ("[::1]:8000", True),
        ("", False),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("127.0.0.1:8000.evil.example", False),
        ("evil.example:127.0.0.1", False),
        ("user@127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("2130706433", False),
    ],
)
async def test_a_loopback_server_answers_to_loopback_names_only(
    host: str, is_answered: bool
) -> None:
    answer = await ask(host=host)

    assert answer.status_code == (200 if is_answered else 403)
    if not is_answered:
        assert answer.json()["error"]["code"] == "permission_denied"


async def test_a_server_for_others_answers_to_any_name() -> None:
    assert (await ask(loopback_only=False, host="models.example")).status_code == 200


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_a_loopback_address_means_this_machine_alone(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


@pytest.mark.parametrize(
    ("origin", "origins", "is_allowed"),
    [
        ("http://localhost:3000", (), True),
        ("https://127.0.0.1", (), True),
        ("http://[::1]:5173", (), True),
        ("https://app.example", (), False),
        ("https://app.example", ("https://app.example",), True),
        ("https://app.example.evil", ("https://app.example",), False),
        ("https://any.example", ("*",), True),
        ("http://localhost.evil.example", (), False),
        ("http://localhost:3000.evil", (), False),
        ("null", (), False),
    ],
)
async def test_pages_of_loopback_and_of_configured_origins_may_call(
    origin: str, origins: tuple[str, ...], is_allowed: bool
) -> None:
    answer = await ask(origins=origins, origin=origin)

    assert answer.headers.get("access-control-allow-origin") == (origin if is_allowed else None)
    assert answer.status_code == (200 if is_allowed else 403)
    if is_allowed:
        assert answer.headers["x-app"] == "1"
        assert answer.headers["vary"] == "origin"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


async def test_pages_may_call_ollamas_routes_too() -> None:
    answer = await ask("POST", "/api/chat", origin="http://localhost:3000")
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"


@pytest.mark.parametrize("path", ["/admin/v1/keys", "/metrics", "/health", "/plugins/p/x"])
async def test_nothing_but_the_api_answers_cors_even_when_all_origins_may_call(path: str) -> None:
    for method in ("GET", "OPTIONS"):
        answer = await ask(method, path, origins=("*",), origin="https://app.example")
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["x-app"] == "1"


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/admin/v1/keys", "/health", "/nowhere"])
async def test_a_page_that_may_not_call_a_loopback_server_runs_nothing_there(
    method: str, path: str
) -> None:
    answer = await ask(method, path, origin="https://evil.example", content_type="text/plain")

    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "permission_denied"
    assert "x-app" not in answer.headers
    assert answer.headers["x-request-id"]
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_server_for_others_runs_what_any_page_asks_because_keys_guard_it() -> None:
    answer = await ask(loopback_only=False, origin="https://evil.example")

    assert answer.headers["x-app"] == "1"
    assert "access-control-allow-origin" not in answer.headers


async def test_a_preflight_is_answered_at_the_edge_with_the_headers_that_it_asks_for() -> None:
    asked = "authorization, x-stainless-lang"
    answer = await ask(
        "OPTIONS", origin="http://localhost:3000", access_control_request_headers=asked
    )

    assert (answer.status_code, answer.content) == (204, b"")
    assert "x-app" not in answer.headers
    assert answer.headers["access-control-allow-headers"] == asked
    assert "POST" in answer.headers["access-control-allow-methods"]


async def test_a_preflight_from_a_page_that_may_not_call_goes_unanswered() -> None:
    answer = await ask("OPTIONS", origin="https://evil.example")

    assert "access-control-allow-methods" not in answer.headers


async def test_a_refused_name_is_refused_for_preflights_too() -> None:
    answer = await ask("OPTIONS", origin="http://localhost:3000", host="evil.example")

    assert answer.status_code == 403
