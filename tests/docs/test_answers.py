"""What the built-in model says about llmhost exists: its commands, flags and keys."""

import re
from typing import Any

import pytest
import typer.main

from llmhost.cli.main import app
from llmhost.config.describe import key_docs
from llmhost.config.environment import TABLES
from llmhost.engines.builtin import corpus

ANSWERS = sorted({pair.answer for pair in corpus.pairs()})
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands
PROSE = {"and", "does", "is", "project", "takes", "unloads"}
"""Words that follow the name in a sentence, where it is no command line."""
VERBS = {"adds", "checks", "creates", "makes", "manages", "lists", "puts", "starts", "uploads"}
"""Words that follow the name of a group of commands in a sentence that says what it does."""

AFTER_NAME = re.compile(r"\bllmhost ([a-z-]+)(?: ([a-z-]+))?")
FLAG = re.compile(r"(?<!\S)--[a-z-]+")
TABLE = re.compile(r"\[(server|models|limits|safety|plugins|devices)\b[^\]]*\]")
ASSIGNED = re.compile(r"^\s*([a-z_]+) = |\b([a-z_]+) = (?=[\"\[])", re.MULTILINE)
KEYS = {key for keys in key_docs().values() for key in keys}


def flags(command: Any) -> set[str]:
    parts = getattr(command, "commands", {}).values()
    own = {flag for parameter in command.params for flag in parameter.opts}
    return own.union({"--help"}, *(flags(part) for part in parts))


def named(answer: str) -> list[Any]:
    """The commands that an answer names."""
    found = []
    for first, second in AFTER_NAME.findall(answer):
        if first not in PROSE:
            parts = getattr(COMMANDS[first], "commands", {})
            found.append(parts[second] if parts and second not in VERBS else COMMANDS[first])
    return found


def test_there_are_commands_flags_and_keys_to_check():
    text = "\n".join(ANSWERS)

    assert len(AFTER_NAME.findall(text)) > 30
    assert len(FLAG.findall(text)) > 20
    assert len(ASSIGNED.findall(text)) > 5


@pytest.mark.parametrize("answer", [a for a in ANSWERS if AFTER_NAME.search(a)])
def test_a_command_in_an_answer_exists(answer: str):
    for first, second in AFTER_NAME.findall(answer):
        assert first in COMMANDS.keys() | PROSE
        parts = getattr(COMMANDS.get(first), "commands", None)
        assert parts is None or second in parts.keys() | VERBS


@pytest.mark.parametrize("answer", [a for a in ANSWERS if FLAG.search(a)])
def test_a_flag_in_an_answer_belongs_to_a_command_that_it_names(answer: str):
    commands = named(answer) or COMMANDS.values()
    known = {"--help"}.union(*(flags(command) for command in commands))

    assert set(FLAG.findall(answer)) <= known


def test_the_list_of_commands_is_complete():
    answer = next(p.answer for p in corpus.pairs() if p.questions[0].startswith("Which commands"))
    named = set(re.findall(r"[a-z]+(?:-[a-z]+)*", answer)) - {"and"}

    assert named == set(COMMANDS)


@pytest.mark.parametrize("answer", [a for a in ANSWERS if TABLE.search(a) or ASSIGNED.search(a)])
def test_a_table_or_key_of_the_settings_in_an_answer_exists(answer: str):
    assert set(TABLE.findall(answer)) <= {*TABLES, "models"}
    assert {first or second for first, second in ASSIGNED.findall(answer)} <= KEYS
