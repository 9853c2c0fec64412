"""What a request held is free when it has ended, whatever its end: Python's collector comes seldom on a busy server."""

import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.api.test_visits import app_of, visit
from tests.unit.api.test_wires import WiredConnection
from tests.unit.pipeline.node import settled, until

from llmhost.api.idempotency import HEADER
from llmhost.api.recording import Playback, Recording
from llmhost.api.visit import Visit
from llmhost.config.schema import Settings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.safety import SafetySettings
from llmhost.config.schema.state import IdempotencySettings
from llmhost.core.output import Delta
from llmhost.core.request import GenerationRequest
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.stream import ReplayStream
from llmhost.testing import FAKE_MODEL, make_host

OF_A_REQUEST = (
    *(Visit, GenerationRequest, RequestContext, ReplayStream, Delta),
    *(Recording, Playback),
)

FRAGILE = ModelSpec(engine="fake", options={"fail_after_tokens": 3})


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left() -> list[object]:
    return [each for each in gc.get_objects() if type(each) in OF_A_REQUEST]


def with_key(connection: WiredConnection) -> WiredConnection:
    connection.scope["headers"].append((HEADER.encode(), b"k1"))
    return connection


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"stream": True},
        {"stream": True, "n": 2},
        {"logprobs": 2, "echo": True},
        {"model": "fragile"},
        {"model": "fragile", "stream": True},
        {"model": "unknown"},
        {"temperature": -3},
    ],
    ids=str,
)
async def test_nothing_of_a_request_that_has_ended_is_left(
    body: dict[str, Any], has_key: bool
) -> None:
    raw = json.dumps({"model": "m", "prompt": "hello world", "max_tokens": 9, **body}).encode()
    async with make_host(models={"m": FAKE_MODEL, "fragile": FRAGILE}) as host:
        before = len(left())
        connection = WiredConnection(raw)
        await visit(app_of(host), with_key(connection) if has_key else connection)
        await settled(host)
        await until(lambda: len(left()) <= before)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("pattern", ["[A-Z]", "[a-z]"], ids=["passed", "refused"])
@pytest.mark.parametrize("body", [{}, {"stream": True, "n": 2}], ids=str)
async def test_nothing_of_a_request_whose_answer_was_judged_is_left(
    body: dict[str, Any], pattern: str
) -> None:
    raw = json.dumps({"model": "m", "prompt": "123", "max_tokens": 9, **body}).encode()
    judging = Settings(safety=SafetySettings(blocked_patterns=(pattern,)))
    async with make_host(models={"m": FAKE_MODEL}, settings=judging) as host:
        before = len(left())
        await visit(app_of(host), WiredConnection(raw))
        await settled(host)
        await until(lambda: len(left()) <= before)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("has_key", [False, True])
async def test_nothing_of_a_request_whose_client_left_is_left(has_key: bool) -> None:
    raw = json.dumps({"model": "m", "prompt": "x", "max_tokens": 10**5, "stream": True}).encode()
    at_once = Settings(idempotency=IdempotencySettings(grace_s=0))
    async with make_host(models={"m": FAKE_MODEL}, settings=at_once) as host:
        before = len(left())
        connection = WiredConnection(raw)
        if has_key:
            with_key(connection)
        call = visit(app_of(host), connection)
        await until(lambda: len(connection.sent) > 3)
        connection.gone.set()
        await call
        await settled(host)
        del call
        await until(lambda: len(left()) <= before)
