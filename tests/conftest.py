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

HAS_GPU = Path("/dev/nvidia0").exists()
if not HAS_GPU:
    # Without a GPU Triton's own interpreter runs the kernels, on the CPU. It has to know before they are defined.
    os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.append(str(Path(__file__).parent / "http"))  # for server_process.py


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long checks run only when `-m` names them, and so do those for a GPU where there is none."""
    apart = [mark for mark in ("bars", "gpu") if mark not in config.option.markexpr]
    if HAS_GPU and "gpu" in apart:
        apart.remove("gpu")
    kept = [item for item in items if not any(item.get_closest_marker(mark) for mark in apart)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
