"""What is said to be here can be imported, and what is said to come later can't."""

import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "concepts.md").read_text()
ROWS = re.findall(r"^\| [^|]+ \| `(llmhost[\w.]*)` \| (\w+) \|(.*)\|$", DOC, re.MULTILINE)
HERE = [package for package, state, _ in ROWS if state == "here"]
LATER = [package for package, state, _ in ROWS if state == "later"]
WORDS = (
    *("request", "sequence", "model", "deployment", "replica", "engine", "runner", "caller"),
    *("tenant", "step", "block", "hold", "lease", "nano", "TTFT", "ITL", "prefill", "decode"),
    *("chunked prefill", "continuous batching", "paged attention", "lane"),
)


def is_there(package: str) -> bool:
    parent = package.rpartition(".")[0]
    return (not parent or is_there(parent)) and find_spec(package) is not None


def test_every_row_is_here_or_later():
    lines = [line for line in DOC.splitlines() if line.startswith("| ")]

    assert len(ROWS) == len(lines) - 1  # the heading
    assert {state for _, state, _ in ROWS} == {"here", "later"}


@pytest.mark.parametrize("package", HERE)
def test_what_is_here_imports(package: str):
    assert importlib.import_module(package).__doc__


@pytest.mark.parametrize(("package", "says"), [(p, s) for p, state, s in ROWS if state == "here"])
def test_what_is_here_says_what_it_does(package: str, says: str):
    assert says.strip().endswith("."), package


@pytest.mark.parametrize("package", LATER)
def test_what_comes_later_is_not_here(package: str):
    assert not is_there(package), f"{package} exists by now: say in concepts.md what it does"


def test_every_package_has_a_row():
    packages = {path.parent.name for path in (ROOT / "src/llmhost").glob("*/__init__.py")}
    wired = {"cli", "config", "core", "host"}  # how the program is made, not what people ask for

    assert packages - wired <= {package.split(".")[1] for package in HERE}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_has_one_entry(word: str):
    entries = re.findall(r"^- \*\*(.+?)\.\*\* ", DOC, re.MULTILINE)

    assert [entry.lower() for entry in entries].count(word.lower()) == 1
