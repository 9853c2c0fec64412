"""Every command that the pages show exists, with its options."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from llmhost.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?:sh)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANY_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(llmhost [^`\n]+)`")
STAND_INS = {"COMMAND", "..."}
"""Words that stand for something: such a line is no command."""


def shown() -> Iterator[tuple[str, str]]:
    """(page, command line) of every `llmhost ...` in shell blocks and in the text."""
    for page in PAGES:
        text, name = page.read_text(), str(page.relative_to(ROOT))
        for block in BLOCK.findall(text):
            for line in block.splitlines():
                found = re.search(r"(?:^|\$\()(llmhost [a-z-][^)]*)", line.partition(" #")[0])
                if found:
                    yield name, found[1]
        for line in INLINE.findall(ANY_BLOCK.sub("", text)):
            if not STAND_INS & set(line.split()):
                yield name, line


SHOWN = sorted(set(shown()))
PROGRAM = typer.main.get_command(app)


def test_there_are_commands_to_check():
    assert len(SHOWN) > 20


@pytest.mark.parametrize(("page", "line"), SHOWN)
def test_a_command_exists_and_takes_what_is_shown(page: str, line: str):
    words = shlex.split(re.split(r" (?:[<>|]|&&) ", line)[0])[1:]
    command: Any = PROGRAM
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    is_program = command.name == "llmhost"

    assert not is_program or all(word.startswith("-") for word in words), f"{page}: {line}"
    if words and "--help" not in words:
        command.make_context(command.name, words).close()


INLINE_MAKE = re.compile(r"`make [^`\n]+`")
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path):
    text = page.read_text()
    code = [
        *re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL),
        *INLINE_MAKE.findall(text),
    ]
    used = {
        target
        for part in code
        for target in re.findall(r"(?:^|\$ |`)make (?:[A-Z]+=\S+ )*([a-z]+)\b", part, re.MULTILINE)
    }

    assert used <= TARGETS
