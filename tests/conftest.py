"""What all tests share: the long checks run only when asked for, and server processes can be had."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "http"))  # for server_process.py


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long checks run only when `-m` names them."""
    if "bars" in config.option.markexpr:
        return
    kept = [item for item in items if item.get_closest_marker("bars") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
