"""Some routes went past budgets and limits: a gateway's pass-through, newer APIs beside the one that was metered."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from litestar import Litestar

from llmhost.api import app as api_app
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.money import PriceSettings
from llmhost.core.caller import Limits
from llmhost.testing import TestHost, make_host

METERED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "echo",
        "max_tokens": 1,
        "messages": [{"role": "user", "content": "x"}],
    },
    "/v1/completions": {"model": "echo", "prompt": "x", "max_tokens": 1},
    "/v1/messages": {
        "model": "echo",
        "max_tokens": 1,
        "messages": [{"role": "user", "content": "x"}],
    },
    "/v1/embeddings": {"model": "embedder", "input": "x"},
    "/v1/responses": {"model": "echo", "max_output_tokens": 1, "input": "x"},
    "/v1/responses/compact": {"model": "echo", "input": "x"},
    "/v1/decisions": {
        "model": "echo",
        "input": "x",
        "questions": [{"type": "predicate", "name": "q", "instructions": "y"}],
    },
    "/v1/moderations": {"model": "judge", "input": "x"},
    "/api/chat": {
        "model": "echo",
        "messages": [{"role": "user", "content": "x"}],
        "options": {"num_predict": 1},
        "stream": False,
    },
    "/api/generate": {
        "model": "echo",
        "prompt": "x",
        "options": {"num_predict": 1},
        "stream": False,
    },
    "/api/embed": {"model": "embedder", "input": "x"},
    "/api/embeddings": {"model": "embedder", "prompt": "x"},
    "/reranking": {"model": "judge", "query": "x", "documents": ["y"]},
    "/v1/reranking": {"model": "judge", "query": "x", "documents": ["y"]},
    "/score": {"model": "judge", "text_1": "x", "text_2": "y"},
    "/v1/score": {"model": "judge", "text_1": "x", "text_2": "y"},
    "/rerank": {"model": "judge", "query": "x", "documents": ["y"]},
    "/v1/rerank": {"model": "judge", "query": "x", "documents": ["y"]},
    "/v2/rerank": {"model": "judge", "query": "x", "documents": ["y"]},
    "/classify": {"model": "judge", "input": "x"},
    "/v1/classify": {"model": "judge", "input": "x"},
}
"""Each route that makes a model compute, with a body that it answers."""
EXEMPT = {
    *("/health", "/ready", "/metrics", "/v1/models", "/v1/models/{model:path}", "/v1/estimate"),
    "/v1/messages/count_tokens",
    *("/", "/schema", "/schema/openapi.json", "/api/blobs/{digest}"),
    *(f"/api/{act}" for act in ("copy", "create", "delete", "ps", "pull", "push", "show", "tags")),
    *("/api/version", "/tokenize", "/detokenize", "/apply-template"),
    *("/v1/tokenize", "/v1/detokenize", "/v1/apply-template"),
    *("/v1/chat/completions/{chat}", "/v1/chat/completions/{chat}/messages"),
    *("/v1/files", "/v1/files/{file_id}", "/v1/files/{file_id}/content"),
    *("/v1/batches", "/v1/batches/{batch_id}", "/v1/batches/{batch_id}/cancel"),
    "/v1/messages/batches",
    *(f"/v1/messages/batches/{{batch_id}}{part}" for part in ("", "/cancel", "/results")),
    "/v1/responses/input_tokens",
    *(f"/v1/responses/{{response_id}}{part}" for part in ("", "/cancel", "/input_items")),
    "/v1/conversations",
    *(
        f"/v1/conversations/{{conversation_id}}{part}"
        for part in ("", "/items", "/items/{item_id}")
    ),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/billing/public-key", "/v1/usage"),
    "/v1/reviews/{review_id}",
}
"""These ask no model; the lines of a batch are metered one by one."""
EXEMPT_BEGINNINGS = ("/admin/", "/v1/organization/")
"""Nor do operators' acts and reports."""

PRICE = PriceSettings(input="1.00", output="2.00")
MODELS = {
    name: ModelSpec(engine="fake", price=PRICE, options={"task": task})
    for name, task in (("echo", "generate"), ("embedder", "embed"), ("judge", "classify"))
}


@pytest.fixture
def made_apps(monkeypatch: pytest.MonkeyPatch) -> list[Litestar]:
    """The applications that are made in a test, without what is put around them."""
    made: list[Litestar] = []

    def noted(kind: type[Litestar]) -> type[Litestar]:
        class Noted(kind):  # type: ignore[valid-type, misc]
            def __init__(self, *args: Any, **more: Any) -> None:
                super().__init__(*args, **more)
                made.append(self)

        return Noted

    for name in ("Litestar", "Framework"):  # with routes of plugins and without
        monkeypatch.setattr(api_app, name, noted(getattr(api_app, name)))
    return made


@pytest.fixture
async def host(made_apps: list[Litestar]) -> AsyncIterator[TestHost]:
    async with make_host(models=MODELS) as host:
        yield host


def paths_of(app: Litestar) -> set[str]:
    return {route.path_format for route in app.routes}


async def test_every_route_is_metered_or_listed_as_exempt(
    host: TestHost, made_apps: list[Litestar]
) -> None:
    host.host.app.routes.register()
    (app,) = made_apps
    found = {path for path in paths_of(app) if not path.startswith(EXEMPT_BEGINNINGS)}

    unknown = found - METERED.keys() - EXEMPT - {path.replace(":path", "") for path in EXEMPT}

    assert not unknown, f"{sorted(unknown)}: does a model compute there? List it in this test."


@pytest.mark.parametrize("path", METERED)
async def test_each_metered_route_books_what_it_computed_and_keeps_to_limits(
    host: TestHost, path: str
) -> None:
    key = await host.make_key("acme", limits=Limits(requests_per_minute=1))
    headers = {"authorization": f"Bearer {key}"}

    answers = [await host.client.post(path, json=METERED[path], headers=headers) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 429], answers[0].text
    answered = host.entries()[0]
    assert answered["org"] == "acme"
    assert sum(answered["tokens"].values()) > 0
    assert answered["amount_nano"] > 0
