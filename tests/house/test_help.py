"""Every command explains itself with examples that work, at once, and without loading what serves."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from llmhost.cli import serve
from llmhost.cli.main import app
from llmhost.cli.program import make_program

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "transformers",
    "litestar",
    "uvicorn",
    "numpy",
    "httpx",
    "rich",
    "msgspec",
    "sqlite3",
)


def commands() -> Iterator[tuple[str, Any]]:
    """`llmhost keys create` and its command, for all."""

    def walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield path, command
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(f"{path} {name}", below)

    yield from walk("llmhost", typer.main.get_command(app))


ALL = dict(commands())
EXAMPLES = [
    (path, line.strip())
    for path, command in ALL.items()
    for line in (command.epilog or "").splitlines()
    if line.startswith("  ")
]


@pytest.mark.parametrize("path", ALL)
def test_every_command_says_what_it_does_and_shows_an_example(path: str):
    command = ALL[path]

    assert command.help, path
    assert command.help.splitlines()[0].endswith("."), path
    assert [line for at, line in EXAMPLES if at == path], path


@pytest.mark.parametrize(("path", "line"), EXAMPLES)
def test_every_example_is_of_its_command_and_parses(path: str, line: str):
    assert f"{line} ".startswith(f"{path} ")
    words = shlex.split(re.split(r" [<>|] ", line)[0])[1:]
    command = ALL["llmhost"]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]

    command.make_context(command.name, words).close()


@pytest.mark.parametrize("path", ALL)
def test_every_option_is_explained(path: str):
    for parameter in ALL[path].params:
        assert parameter.help, f"{path} {parameter.name}"


LISTINGS = (
    "serve",
    "chat",
    "models",
    "ps",
    "usage",
    "plugins",
    "doctor",
    "keys list",
    "orgs list",
    "teams list",
    "config explain",
)


@pytest.mark.parametrize("name", LISTINGS)
def test_every_listing_has_json(name: str):
    assert any("--json" in parameter.opts for parameter in ALL[f"llmhost {name}"].params)


def test_the_program_that_only_serves_takes_the_same_words():
    alone = typer.main.get_command(make_program([serve]))
    whole = typer.main.get_command(app)

    for command in (alone, whole):
        command.name = "llmhost"
    said = [one.make_context("llmhost", ["--debug", "serve"]) for one in (alone, whole)]
    helps = [
        one.commands["serve"].get_help(ctx) for one, ctx in zip((alone, whole), said, strict=True)
    ]
    assert helps[0] == helps[1]
    assert alone.get_params(said[0])[0].opts == whole.get_params(said[1])[0].opts


PROBE = """
import sys
import llmhost
assert not [name for name in sys.modules if name.startswith("llmhost.")]
from llmhost.cli.main import app
import typer.main
command = typer.main.get_command(app)  # as `app` does on each call
for args in {args!r}:
    try:
        command([*args, "--help"], prog_name="llmhost")
    except SystemExit as end:
        assert end.code == 0, args
heavy = sorted({heavy!r} & set(sys.modules))
assert not heavy, heavy
"""


def test_help_of_every_command_imports_nothing_heavy():
    args = [tuple(path.split()[1:]) for path in ALL]
    code = PROBE.format(args=args, heavy=set(HEAVY))
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Examples:") == len(ALL)


@pytest.mark.parametrize("args", [["--version"], ["version"]])
def test_the_module_runs_as_a_program(args: list[str]):
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "llmhost", *args],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )

    assert re.fullmatch(r"llmhost \d+\.\d+\.\d+\n", done.stdout)
