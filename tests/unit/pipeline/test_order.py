"""The stages of a request run in their order, and the refusal of one keeps the later ones from running."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest
from tests.unit.pipeline.node import settled

from llmhost.config.schema import Settings
from llmhost.config.schema.limits import LimitSettings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.safety import SafetySettings
from llmhost.core.caller import Caller
from llmhost.core.errors import ConfigError
from llmhost.core.events import DeploymentChanged, RequestEnded
from llmhost.core.request import GenerationRequest
from llmhost.hooks.spec import Price, Refusal, hookimpl
from llmhost.testing import FAKE_MODEL, make_host

ORDER = ["identify_caller", "route_request", "admit_request", "quote_price", "check_input"]
ALL = [*ORDER, "check_output"]


class Spy:
    """Notes each hook as it is asked; refuses in one of them."""

    def __init__(self, refuses: str | None = None) -> None:
        self.asked: list[str] = []
        self.events: list[object] = []
        self._refuses = refuses

    def note(self, hook: str) -> Refusal | None:
        if hook not in self.asked:
            self.asked.append(hook)
        return Refusal(f"no: {hook}") if hook == self._refuses else None

    @hookimpl
    def identify_caller(self, api_key: str | None, headers: Mapping[str, str]) -> Any:
        return self.note("identify_caller") or Caller(key_id="k", org="acme")

    @hookimpl
    def route_request(self, request: GenerationRequest, candidates: tuple[str, ...]) -> None:
        self.note("route_request")

    @hookimpl
    def admit_request(self, request: GenerationRequest, caller: Caller) -> Refusal | None:
        return self.note("admit_request")

    @hookimpl
    def quote_price(
        self, request: GenerationRequest, caller: Caller, price: Price, now: datetime
    ) -> None:
        self.note("quote_price")

    @hookimpl
    def check_input(self, request: GenerationRequest, caller: Caller) -> Refusal | None:
        return self.note("check_input")

    @hookimpl
    def check_output(self, text: str, request: GenerationRequest, caller: Caller) -> Refusal | None:
        return self.note("check_output")

    @hookimpl
    def observe(self, event: object) -> None:
        self.events.append(event)


async def test_the_stages_run_in_the_order_of_the_story() -> None:
    spy = Spy()
    async with make_host(plugins=[spy]) as host:
        await host.say("hello", max_tokens=4)

    assert spy.asked == ALL


@pytest.mark.parametrize(
    ("hook", "status", "code"),
    [
        ("identify_caller", 401, "invalid_api_key"),
        ("admit_request", 403, "permission_denied"),
        ("check_input", 400, "content_policy_violation"),
    ],
)
async def test_a_refusal_keeps_later_stages_from_running_and_is_metered_once(
    hook: str, status: int, code: str
) -> None:
    spy = Spy(refuses=hook)
    async with make_host(plugins=[spy]) as host:
        answer = await host.chat("hello", max_tokens=4)
        await host.host.observers.close()
    ended = [event for event in spy.events if isinstance(event, RequestEnded)]

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["message"] == f"no: {hook}"
    assert spy.asked == ORDER[: ORDER.index(hook) + 1]
    assert [(event.outcome, event.code, event.amount_nano) for event in ended] == [
        ("refused", code, 0)
    ]


@pytest.mark.parametrize(
    ("body", "code", "asked"),
    [
        ({"model": "nobody"}, "model_not_found", ORDER[:2]),
        ({"max_tokens": 10**6}, "context_length_exceeded", ORDER[:2]),
        ({"n": 0}, "invalid_value", ORDER[:1]),  # a stranger hears first that he is one
    ],
)
async def test_what_resolution_or_the_body_refuses_is_not_asked_about_further(
    body: dict[str, Any], code: str, asked: list[str]
) -> None:
    spy = Spy()
    async with make_host(plugins=[spy]) as host:
        answer = await host.client.post(
            "/v1/completions", json={"model": "fake", "prompt": "hello", **body}
        )
        [entry] = await settled(host)

    assert answer.json()["error"]["code"] == code
    assert spy.asked == asked
    assert (entry["outcome"], entry["code"], entry["amount_nano"]) == ("refused", code, 0)


async def test_the_rate_is_checked_before_plugins_may_admit_or_price() -> None:
    spy = Spy()
    limits = LimitSettings(requests_per_minute=1, burst_requests=1)
    async with make_host(plugins=[spy], settings=Settings(limits=limits)) as host:
        await host.say("hello", max_tokens=1)
        spy.asked.clear()
        answer = await host.chat("hello", max_tokens=1)

    assert (answer.status_code, spy.asked) == (429, ORDER[:2])


class Badges:
    """Callers without keys: the bearer is an organisation and a team."""

    @hookimpl
    def identify_caller(self, api_key: str | None, headers: Mapping[str, str]) -> Caller:
        org, _, team = (api_key or "").partition("/")
        return Caller(key_id=None, org=org, team=team or None)


async def test_callers_without_keys_have_a_rate_of_their_own_for_each_team() -> None:
    limits = LimitSettings(requests_per_minute=1, burst_requests=1)
    async with make_host(plugins=[Badges()], settings=Settings(limits=limits)) as host:
        statuses = []
        for badge in ("a", "b", "b/one", "b/two", "a", "b/one"):
            host.client.headers["authorization"] = f"Bearer {badge}"
            statuses.append((await host.chat("hello", max_tokens=1)).status_code)

    assert statuses == [200, 200, 200, 200, 429, 429]


async def test_rules_of_the_server_refuse_before_plugins_are_asked() -> None:
    spy = Spy()
    safety = SafetySettings(blocked_words=("forbidden",))
    async with make_host(plugins=[spy], settings=Settings(safety=safety)) as host:
        answer = await host.chat("a forbidden thing")

    assert answer.status_code == 400
    assert "check_input" not in spy.asked


async def test_a_refused_request_loads_no_model() -> None:
    spy = Spy(refuses="check_input")
    model = ModelSpec(engine="fake", load="request")
    async with make_host(plugins=[spy], models={"fake": model}) as host:
        await host.chat("hello")
        [deployment] = host.host.deployments.all()
        assert deployment.state == "absent"
        await host.host.observers.close()

    assert not [event for event in spy.events if isinstance(event, DeploymentChanged)]


async def test_a_plugin_routes_a_name_that_only_it_knows() -> None:
    class Router:
        @hookimpl
        def route_request(self, request: GenerationRequest, candidates: tuple[str, ...]) -> str:
            self.seen = (request.model, candidates)
            return "large"

    router = Router()
    models = {"small": FAKE_MODEL, "large": FAKE_MODEL}
    async with make_host(plugins=[router], models=models) as host:
        answer = await host.chat("hello", model="best", max_tokens=1)
        [entry] = await settled(host)

    assert answer.status_code == 200
    assert router.seen == ("best", ("small", "large"))
    assert entry["model"] == "large@1"
    assert answer.json()["model"] == "best"


async def test_a_router_may_only_choose_what_the_caller_may_use() -> None:
    class Router:
        @hookimpl
        def route_request(self, request: GenerationRequest, candidates: tuple[str, ...]) -> str:
            self.seen = candidates
            return "large"

    router = Router()
    models = {"small": FAKE_MODEL, "large": FAKE_MODEL}
    async with make_host(plugins=[router], models=models) as host:
        key = await host.make_key(models=["small"])
        host.client.headers["authorization"] = f"Bearer {key}"
        kept = await host.chat("hello", model="small", max_tokens=1)
        refused = await host.chat("hello", model="large", max_tokens=1)
        entries = await settled(host)

    assert router.seen == ("small",)
    assert kept.status_code == 200  # its choice is none of the candidates, so it has no say
    assert entries[0]["model"] == "small@1"
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")


async def test_a_key_may_use_a_model_by_any_of_its_names() -> None:
    models = {
        "small": ModelSpec(engine="fake", aliases=("gpt-4o-mini",)),
        "large": ModelSpec(engine="fake"),
    }
    async with make_host(models=models) as host:
        key = await host.make_key(models=["gpt-4o-mini"])
        host.client.headers["authorization"] = f"Bearer {key}"
        statuses = [
            (await host.chat("hello", model=name, max_tokens=1)).status_code
            for name in ("small", "gpt-4o-mini", "large")
        ]

    assert statuses == [200, 200, 403]


async def test_an_engine_that_nobody_registered_keeps_the_node_from_starting() -> None:
    with pytest.raises(ConfigError, match="engine 'held' is unknown"):
        async with make_host(models={"m": ModelSpec(engine="held")}):
            pass
