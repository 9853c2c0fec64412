"""Commands that plugins hand in."""

from pathlib import Path

import pytest

GREETER = '''
import typer
from llmhost import hookimpl

more = typer.Typer(name="greetings", help="More of them.")


@more.command()
def evening() -> None:
    typer.echo("good evening")


@more.command()
def night() -> None:
    typer.echo("good night")


def greet(name: str = "world") -> None:
    """Say hello."""
    typer.echo(f"hello {name}")


@hookimpl
def register_commands(register):
    register(greet)
    register(more)
'''


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.setenv("LLMHOST_PLUGINS_DIR", str(folder))
    return folder


def test_a_plugins_function_is_a_command(llmhost, plugins: Path):
    (plugins / "greeter.py").write_text(GREETER)

    assert llmhost("greet", "--name", "ada").stdout == "hello ada\n"
    assert "Say hello." in llmhost("greet", "--help").stdout


def test_a_plugins_typer_application_is_a_group(llmhost, plugins: Path):
    (plugins / "greeter.py").write_text(GREETER)

    assert llmhost("greetings", "night").stdout == "good night\n"


def test_a_plugin_that_fails_goes_without_its_commands(llmhost, plugins: Path):
    (plugins / "greeter.py").write_text(GREETER)
    (plugins / "broken.py").write_text(
        "from llmhost import hookimpl\n\n@hookimpl\ndef register_commands(register):\n    1 / 0\n"
    )

    assert llmhost("greet").stdout == "hello world\n"


def test_a_name_that_nobody_has_is_wrong_usage(llmhost, plugins: Path):
    result = llmhost("greet")

    assert result.exit_code == 2
    assert "No such command 'greet'" in result.stderr
