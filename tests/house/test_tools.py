"""The tools that read the code, run as tests so that there is nothing else to remember."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    ["ruff check .", "ruff format --check .", "mypy", "lint-imports --no-cache"],
)
def test_the_code_passes(command: str) -> None:
    program, *rest = command.split()
    done = subprocess.run(
        [str(BIN / program), *rest], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
