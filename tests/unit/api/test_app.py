"""The application on a node: routes, their guards, and what is said when there is no such thing."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from litestar import get
from tests.unit.api.test_visits import Connection, app_of, visit
from tests.unit.pipeline.node import settled, until

from llmhost.config.schema import Settings
from llmhost.config.schema.limits import LimitSettings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.server import ServerSettings
from llmhost.hooks.spec import hookimpl
from llmhost.tenants.tokens import new_token
from llmhost.testing import FAKE_MODEL, TestHost, make_host

SLASHED = {"org/model": ModelSpec(engine="fake", aliases=("org/other",))}


def admin(host: TestHost) -> dict[str, str]:
    return {"authorization": f"Bearer {host.host.admin_token}"}


def four_keys(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["content-type"].startswith("application/json")
    return error


async def test_a_route_that_does_not_exist_is_an_error_of_the_usual_shape() -> None:
    async with make_host() as host:
        for path in ("/nowhere", "/v1/nowhere", "/v1", "/admin/v1/nowhere"):
            answer = await host.client.get(path)
            assert answer.status_code == 404, path
            assert four_keys(answer)["type"] == "invalid_request_error"


async def test_a_wrong_method_is_an_error_of_the_usual_shape() -> None:
    async with make_host() as host:
        for method, path in (
            ("PUT", "/v1/chat/completions"),
            ("DELETE", "/v1/completions"),
            ("POST", "/v1/models"),
            ("POST", "/health"),
            ("PUT", "/metrics"),
        ):
            answer = await host.client.request(method, path)
            assert answer.status_code == 405, path
            assert four_keys(answer)["code"] == "method_not_allowed"


async def test_a_body_that_is_too_large_is_refused_on_every_route() -> None:
    settings = Settings(server=ServerSettings(max_body_bytes=100))
    async with make_host(settings=settings) as host:
        chat = await host.chat("x" * 200)
        orgs = await host.client.post(
            "/admin/v1/orgs", json={"name": "x" * 200}, headers=admin(host)
        )

    for answer in (chat, orgs):
        assert (answer.status_code, four_keys(answer)["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("name", ["org/model", "org%2Fmodel", "org/other"])
async def test_a_model_whose_name_has_a_slash_is_found(name: str) -> None:
    async with make_host(models=SLASHED) as host:
        answer = await host.client.get(f"/v1/models/{name}")

    assert answer.status_code == 200
    assert answer.json()["id"] == name.replace("%2F", "/")
    assert answer.json()["root"] == "org/model"


async def test_a_model_says_how_long_a_conversation_may_be() -> None:
    bounded, replace = ModelSpec(engine="fake", max_sequence_length=64), msgspec.structs.replace
    late = replace(bounded, load="request")
    models = {
        "bounded": bounded,
        "late": late,
        "unknown": replace(late, max_sequence_length=None),
    }
    async with make_host(models=models) as host:
        found = (await host.client.get("/v1/models")).json()["data"]
        one = (await host.client.get("/v1/models/bounded")).json()

    known = {"bounded": 64, "late": 64, "unknown": None}
    assert {each["id"]: each["max_model_len"] for each in found} == known
    assert {each["id"]: each["max_input_tokens"] for each in found} == known
    assert one in found


async def test_a_model_that_does_not_exist_is_not_found_and_the_nearest_named() -> None:
    async with make_host(models=SLASHED) as host:
        error = four_keys(await host.client.get("/v1/models/org/modle"))

    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "Did you mean 'org/model'?" in error["message"]


@pytest.mark.parametrize("name", ["org/model", "org%2Fmodel"])
async def test_an_operator_loads_and_unloads_a_model_whose_name_has_a_slash(name: str) -> None:
    async with make_host(models=SLASHED) as host:
        states = []
        for act in ("unload", "load", "load", "unload", "unload"):
            answer = await host.client.post(f"/admin/v1/models/{name}/{act}", headers=admin(host))
            states.append((answer.status_code, answer.json()["state"]))

    assert [state for _, state in states] == ["absent", "ready", "ready", "absent", "absent"]
    assert {status for status, _ in states} == {200}


@pytest.mark.parametrize("act", ["load", "unload"])
async def test_an_operator_who_names_no_known_model_hears_so(act: str) -> None:
    async with make_host() as host:
        answer = await host.client.post(f"/admin/v1/models/no/such/{act}", headers=admin(host))

    assert (answer.status_code, four_keys(answer)["code"]) == (404, "model_not_found")


ADMIN_ROUTES = [
    ("GET", "/admin/v1/orgs"),
    ("POST", "/admin/v1/keys"),
    ("DELETE", "/admin/v1/keys/x"),
    ("POST", "/admin/v1/models/fake/unload"),
    ("GET", "/admin/v1/ledger/export"),
    ("GET", "/admin/v1/plugins"),
    ("GET", "/admin/v1/ps"),
]


async def test_admin_routes_are_for_whoever_has_the_token() -> None:
    patient = Settings(limits=LimitSettings(failed_auth_per_minute=0))
    async with make_host(settings=patient) as host:
        tokens = [
            "",
            "Bearer ",
            "Bearer wrong",
            "Bearer caf\u00e9",
            f"Bearer {new_token()[1]}",
        ]
        for method, path in ADMIN_ROUTES:
            for token in tokens:
                headers = [(b"authorization", token.encode("latin-1"))] if token else []
                answer = await host.client.request(method, path, headers=headers)
                error = four_keys(answer)
                assert (answer.status_code, error["code"]) == (401, "invalid_api_key"), (
                    path,
                    token,
                )


class Routes:
    """A plugin with routes."""

    __name__ = "routes"

    @hookimpl
    def register_routes(self, register: Callable[[Any], None]) -> None:
        @get("/hello", sync_to_thread=False)
        def hello() -> dict[str, str]:
            return {"say": "hello"}

        @get("/broken", sync_to_thread=False)
        def broken() -> dict[str, str]:
            raise RuntimeError("secret detail")

        register(hello)
        register(broken)


async def test_a_plugins_routes_are_below_its_name() -> None:
    async with make_host(plugins=[Routes()]) as host:
        answer = await host.client.get("/plugins/routes/hello")
        elsewhere = await host.client.get("/hello")

    assert answer.json() == {"say": "hello"}
    assert elsewhere.status_code == 404


async def test_a_route_that_fails_is_a_plain_500_whose_reason_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with make_host(plugins=[Routes()]) as host:
        answer = await host.client.get("/plugins/routes/broken")

    assert answer.status_code == 500
    error = four_keys(answer)
    assert (error["type"], error["code"]) == ("server_error", None)
    assert "secret" not in error["message"]
    assert "secret detail" in caplog.text
    assert answer.headers["x-request-id"] in caplog.text


async def test_an_error_that_was_expected_leaves_no_trace_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with make_host() as host:
        await host.client.get("/nowhere")
        await host.client.get("/v1/models/nobody")

    assert "Traceback" not in caplog.text


async def test_a_client_that_leaves_in_the_body_of_any_route_leaves_no_trace_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with make_host() as host:
        connection = Connection(b'{"na', is_complete=False)
        connection.gone.set()
        token = f"Bearer {host.host.admin_token}".encode()
        connection.scope |= {"path": "/admin/v1/orgs", "raw_path": b"/admin/v1/orgs"}
        connection.scope["headers"] += [
            (b"authorization", token),
            (b"content-type", b"application/json"),
        ]
        await visit(app_of(host), connection)

    assert connection.status == 400  # said to nobody
    assert "Traceback" not in caplog.text


# -- metrics --------------------------------------------------------------------------------------------------------


async def metrics(host: TestHost) -> list[str]:
    answer = await host.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return [line for line in answer.text.splitlines() if line[0] != "#"]


async def test_metrics_render_before_and_after_traffic() -> None:
    async with make_host() as host:
        await metrics(host)
        await host.say("hello", max_tokens=4)
        await host.chat("hello", max_tokens=0)
        await until(lambda: host.host.processor.in_flight == 0)
        lines = await metrics(host)

    assert 'llmhost_requests_total{code="",model_name="fake@1",outcome="answered"} 1.0' in lines
    assert (
        'llmhost_requests_total{code="invalid_value",model_name="unknown",outcome="refused"} 1.0'
        in lines
    )
    assert 'vllm:generation_tokens_total{model_name="fake@1"} 4.0' in lines
    assert 'llmhost_model_state{model_name="fake@1",state="ready"} 1.0' in lines


async def test_a_model_name_that_a_caller_made_up_is_no_label() -> None:
    names = ["made-up-1", "made-up@2", "fake@1", "fake@2", "a@\n", "@"]
    async with make_host() as host:
        for name in names:
            assert (await host.chat("hello", model=name)).status_code == 404
        entries = await settled(host)
        lines = await metrics(host)
    labels = {line.split('model_name="')[1].split('"')[0] for line in lines if "model_name" in line}

    assert labels == {"unknown", "fake@1"}
    assert [entry["model"] for entry in entries] == names
    refused = 'code="model_not_found",model_name="unknown",outcome="refused"'
    assert f"llmhost_requests_total{{{refused}}} 6.0" in lines


# -- what operators read --------------------------------------------------------------------------------------------


async def test_usage_and_the_exported_ledger_agree() -> None:
    async with make_host(models={"fake": FAKE_MODEL}) as host:
        await host.say("hello", max_tokens=4)
        await host.say("hello there", max_tokens=4)
        usage = await host.client.get("/admin/v1/usage?by=model", headers=admin(host))
        export = await host.client.get("/admin/v1/ledger/export", headers=admin(host))
        verify = await host.client.get("/admin/v1/ledger/verify", headers=admin(host))
    [row] = usage.json()["data"]
    entries = [json.loads(line) for line in export.text.splitlines()]

    assert (row["model"], row["requests"], row["output_tokens"]) == ("fake@1", 2, 8)
    assert row["amount_nano"] == sum(entry["amount_nano"] for entry in entries)
    assert verify.status_code == 200


async def test_a_report_that_can_not_be_made_names_the_parameter() -> None:
    async with make_host() as host:
        for query, param in (
            ("by=colour", "by"),
            ("by=org&since=yesterday", "since"),
            ("until=2026-13-01", "until"),
        ):
            answer = await host.client.get(f"/admin/v1/usage?{query}", headers=admin(host))
            assert (answer.status_code, four_keys(answer)["param"]) == (400, param)
