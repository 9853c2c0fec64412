"""What went wrong elsewhere with the money of LLM gateways, one test each, on real server processes."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.append(str(Path(__file__).parent))  # for paid_models.py

from paid_models import SETTINGS, Key
from server_process import Node


@pytest.fixture(scope="session", autouse=True)
def _warm(warm_starts: None) -> None:
    """For all tests here."""


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Has keys from the start, so that everybody needs one."""
    node = Node(tmp_path_factory.mktemp("regressions"), SETTINGS)
    try:
        node.start()
        node.create_key("first")
        yield node
        assert node.verified()["ok"]
        assert node.stop() == 0
        assert "Traceback" not in node.log()
    finally:
        node.close()


@pytest.fixture
def new_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Makes nodes of a test's own; they are stopped after it."""
    made: list[Node] = []

    def make(settings: str = SETTINGS, *flags: str) -> Node:
        made.append(Node(tmp_path / f"node{len(made)}", settings, *flags))
        return made[-1]

    yield make
    for node in made:
        node.close()


@pytest.fixture
def org(request: pytest.FixtureRequest) -> str:
    """A name for an organisation that no other test uses."""
    words: str = request.node.name
    return "".join(c if c.isalnum() else "-" for c in words)[-60:].strip("-")


@pytest.fixture
def key(node: Node, org: str) -> Key:
    """Of an organisation of the test's own."""
    return {"authorization": f"Bearer {node.create_key(org)['key']}"}


@pytest.fixture
def entries(node: Node, org: str) -> Callable[[], list[dict[str, Any]]]:
    """The ledger entries of the test's organisation."""
    return lambda: [entry for entry in node.entries() if entry["org"] == org]


@pytest.fixture
def complete(node: Node, key: Key) -> Callable[..., httpx.Response]:
    """Asks /v1/completions with the test's key."""

    def ask(prompt: Any = "a b c", **more: Any) -> httpx.Response:
        body = {"model": "echo", "prompt": prompt, "max_tokens": 5, **more}
        return node.post("/v1/completions", body, headers=key)

    return ask
