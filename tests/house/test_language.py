"""What the repository says is about the project, and readable by anybody."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
LARGEST_BYTES = 4 * 2**20
LARGE_ON_PURPOSE = {"src/llmhost/engines/builtin/tiny/model.safetensors"}


def tracked() -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def test_no_large_file_is_tracked_but_the_built_in_models() -> None:
    large = {name for name in tracked() if (ROOT / name).stat().st_size > LARGEST_BYTES}

    assert large <= LARGE_ON_PURPOSE


def test_nothing_is_left_unfinished_in_the_source() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "X" + "XX", "NotImplemented" + "Error")
    left = [
        f"{name}:{number}"
        for name in tracked()
        if name.startswith(("src/", "plugins/")) and name.endswith(".py")
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if any(mark in line for mark in marks)
    ]

    assert left == []
