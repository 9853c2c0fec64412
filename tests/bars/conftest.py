"""The long checks. Each prints one line with its figure; `make bars` runs them."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for crowd.py
sys.path.append(str(Path(__file__).parents[1] / "clients"))  # for installed.py

from server_process import Node


@pytest.fixture
def bar(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a bar's line, whatever pytest does with output."""

    def say(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\nbar: {line}\n")

    return say


@pytest.fixture
def new_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Makes nodes; they are stopped after the test."""
    made: list[Node] = []

    def make(settings: str, *flags: str) -> Node:
        made.append(Node(tmp_path / f"node{len(made)}", settings, *flags))
        return made[-1]

    yield make
    for node in made:
        node.close()
