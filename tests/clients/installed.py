"""Clients that are no dependency of this project, installed once into a folder of the user's cache.

Versions are pinned in this folder. Where they can't be installed a test fails with one sentence that says why.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PATIENCE_S = 900


def node_modules() -> Path:
    """Of the clients in package-lock.json."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.fail("These clients need Node.js 20 or newer and npm; there is none on the PATH.")
    with _folder("node", "package.json", "package-lock.json") as (folder, is_new):
        if is_new:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, folder)
            _install([npm, "ci", "--no-audit", "--no-fund"], folder)
    return folder / "node_modules"


def python(name: str) -> Path:
    """The interpreter of an environment with what `requirements-NAME.txt` names."""
    wanted = f"requirements-{name}.txt"
    with _folder(name, wanted) as (folder, is_new):
        found = folder / "venv" / "bin" / "python"
        if is_new:
            _install([sys.executable, "-m", "venv", str(folder / "venv")], folder)
            pip = [str(found), "-m", "pip", "--disable-pip-version-check", "install", "-q", "-r"]
            _install([*pip, str(HERE / wanted)], folder)
    return found


def run_node(
    script: str, folder: Path, environment: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    """A script of this folder, beside the clients that it imports."""
    for each in HERE.glob("*.mjs"):
        shutil.copy(each, folder)
    (folder / "node_modules").symlink_to(node_modules())
    return run(["node", script], folder, environment)


def run(
    command: list[str], folder: Path, environment: Mapping[str, str], within_s: float = 300
) -> "subprocess.CompletedProcess[str]":
    """A client, which knows nothing of the proxies and keys of this machine."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR")}
    return subprocess.run(
        command,
        cwd=folder,
        env={**kept, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )


def checks(output: str) -> list[dict[str, Any]]:
    """What a script of checks printed."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@contextmanager
def _folder(name: str, *pins: str) -> Iterator[tuple[Path, bool]]:
    """The folder of these pins, and whether it is yet to be filled. One process fills it at a time."""
    text = b"".join((HERE / pin).read_bytes() for pin in pins) + sys.version.encode()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmhost-clients"
    folder = home / f"{name}-{hashlib.sha256(text).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "done"
        yield folder, not done.exists()
        done.touch()


def _install(command: list[str], folder: Path) -> None:
    try:
        made = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"The client could not be installed within {PATIENCE_S} s: {' '.join(command)}")
    if made.returncode != 0:
        why = (made.stderr.strip() or made.stdout.strip()).splitlines()[-1:]
        pytest.fail(f"The client could not be installed: {' '.join(command)}: {' '.join(why)}")
