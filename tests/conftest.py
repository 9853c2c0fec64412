"""What all tests share: the long checks run only when asked for, and server processes can be had."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The default run looks at the same examples each time, so that it fails for a change and not by chance. A busy machine
# is not a failure either. `make bars` searches at random.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("searching", deadline=None, max_examples=300, print_blob=True)
settings.load_profile("steady")

if not Path("/dev/nvidia0").exists():
    # Without a GPU Triton's own interpreter runs the kernels, on the CPU. It has to know before they are defined.
    os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.append(str(Path(__file__).parent / "http"))  # for server_process.py


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long checks run only when `-m` names them."""
    if "bars" in config.option.markexpr:
        return
    kept = [item for item in items if item.get_closest_marker("bars") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
