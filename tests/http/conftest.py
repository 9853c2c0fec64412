"""Two servers for all tests here: an open one on loopback, and one that has keys."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI
from server_process import Node

OPEN = """
[server]
heartbeat_s = 0.1
max_body_bytes = 1000000
cors_origins = ["https://allowed.example"]

[limits]
failed_auth_per_minute = 0

[models.echo]
engine = "fake"
aliases = ["parrot"]
[models.echo.price]
input = "1.00"
output = "2.00"

[models.slow]
engine = "fake"
[models.slow.options]
token_delay_ms = 20
[models.slow.price]
input = "1.00"
output = "2.00"

[models.silent]
engine = "fake"
[models.silent.options]
prefill_delay_ms = 700

[models.embedder]
engine = "fake"
max_sequence_length = 64
[models.embedder.options]
task = "embed"
[models.embedder.price]
input = "1.00"

[models.judge]
engine = "fake"
[models.judge.options]
task = "classify"

[models.fragile]
engine = "fake"
[models.fragile.options]
fail_after_tokens = 3
token_delay_ms = 5
[models.fragile.price]
output = "2.00"

[models.narrow]
engine = "fake"
max_sequence_length = 64

[models.single]
engine = "fake"
max_batch_size = 1
max_queue = 1
[models.single.options]
token_delay_ms = 20
[models.single.price]
input = "1.00"
output = "2.00"
"""

KEYED = """
[limits]
failed_auth_per_minute = 0

[models.echo]
engine = "fake"
aliases = ["parrot"]
[models.echo.price]
input = "1.00"
output = "2.00"

[models.other]
engine = "fake"
"""

TINY_MODEL = """
[models.tiny]
engine = "torch"
source = "builtin:tiny"
aliases = ["gpt-4o-mini"]
[models.tiny.options]
device = "cpu"
threads = 1

[models.guessed]
source = "builtin:tiny"
load = "request"
[models.guessed.speculation]
method = "draft"
draft = "builtin:tiny-draft"
[models.guessed.options]
device = "cpu"

[models.tiny-guard]
source = "builtin:tiny-guard"
aliases = ["omni-moderation-latest"]
load = "request"
guard = "classifier"
[models.tiny-guard.options]
device = "cpu"

[models.tiny-embed]
source = "builtin:tiny-embed"
load = "request"
[models.tiny-embed.options]
device = "cpu"
"""


@pytest.fixture(scope="session", autouse=True)
def _warm(warm_starts: None) -> None:
    """For all tests here."""


@pytest.fixture(scope="session")
def open_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Serves fake models to anybody on this machine."""
    yield from _running(Node(tmp_path_factory.mktemp("open"), OPEN))


@pytest.fixture(scope="session")
def keyed_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Has a key from the start, so everybody needs one."""
    node = Node(tmp_path_factory.mktemp("keyed"), KEYED)
    for key_free_node in _running(node):
        key_free_node.create_key("first")
        yield key_free_node


@pytest.fixture(scope="session")
def tiny_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Serves the built-in model."""
    yield from _running(Node(tmp_path_factory.mktemp("tiny"), TINY_MODEL))


def _running(node: Node) -> Iterator[Node]:
    try:
        yield node.start()
        assert node.stop() == 0
        assert "Traceback" not in node.log()
    finally:
        node.close()


@pytest.fixture
def new_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Makes nodes of a test's own; they are stopped after it."""
    made: list[Node] = []

    def make(settings: str = "[models.echo]\nengine = 'fake'\n", *flags: str) -> Node:
        made.append(Node(tmp_path / f"node{len(made)}", settings, *flags))
        return made[-1]

    yield make
    for node in made:
        node.close()


@pytest.fixture(scope="session")
def client(open_node: Node) -> Iterator[OpenAI]:
    with _client(open_node) as ready:
        yield ready


@pytest.fixture
async def async_client(open_node: Node) -> Any:
    async with AsyncOpenAI(
        base_url=f"{open_node.url}/v1",
        api_key="any",
        max_retries=0,
        timeout=60,
        http_client=DefaultAsyncHttpxClient(verify=False),
    ) as ready:
        yield ready


@pytest.fixture
def client_of() -> Iterator[Callable[[Node, str], OpenAI]]:
    """Makes clients that hold a key."""
    made: list[OpenAI] = []

    def make(node: Node, key: str) -> OpenAI:
        made.append(_client(node, key))
        return made[-1]

    yield make
    for each in made:
        each.close()


def _client(node: Node, key: str = "any") -> OpenAI:
    return OpenAI(
        base_url=f"{node.url}/v1",
        api_key=key,
        max_retries=0,
        timeout=60,
        http_client=DefaultHttpxClient(
            verify=False
        ),  # reading the CA bundle takes longer than most tests
    )
