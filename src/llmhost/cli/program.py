"""The program `llmhost`, of all its commands or of some, and how a failure ends one.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted.
"""

from collections.abc import Iterable
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llmhost import __version__
from llmhost.cli.options import Json, examples
from llmhost.core.errors import LlmhostError

_ORDER = (
    *("serve", "chat", "models", "pull", "ps", "load", "unload", "sleep", "wake"),
    *("adapters", "export-gguf"),
    *("batches", "files", "reviews", "cache"),
    *("orgs", "teams", "keys", "budgets", "credits", "prices", "usage", "invoice", "ledger"),
    *("safety", "audit"),
    *("backup", "restore"),
    *("bench", "plugins", "config", "doctor", "version"),
)


class Program(TyperGroup):
    """Commands in the order of a newcomer's day, and errors as one sentence."""

    def list_commands(self, ctx: Any) -> list[str]:
        known = [name for name in _ORDER if name in self.commands]
        return known + sorted(self.commands.keys() - set(_ORDER))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of ours, or else one that a plugin hands in: plugins are only loaded when a name is not ours."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        from llmhost.cli.plugins import find_command

        return find_command(cmd_name)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LlmhostError as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(1) from None


def make_program(commands: Iterable[ModuleType]) -> typer.Typer:
    """With the commands of these modules of `llmhost.cli`."""
    app = typer.Typer(
        name="llmhost",
        cls=Program,
        no_args_is_help=True,
        # Plain help: it reads well in a pipe, and comes twice as fast as with rich.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
        epilog=examples(
            "llmhost serve",
            "llmhost chat",
            "llmhost keys create --org acme",
            "llmhost usage --by model --since 7d",
        ),
    )
    app.callback()(llmhost)
    app.command(name="version", epilog=examples("llmhost version", "llmhost version --json"))(
        show_version
    )
    for module in commands:
        module.add_to(app)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmhost {__version__}")
        raise typer.Exit


def llmhost(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from.", show_default=False)
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and leave.",
            is_eager=True,
            callback=_version,
            show_default=False,
        ),
    ] = False,
) -> None:
    """One process turns a GPU box into a metered, multi-tenant, OpenAI-compatible LLM platform.

    Start a node with `llmhost serve`. The other commands ask that node, found through its data dir or named by
    --url; keys, orgs, budgets, prices, usage, ledger, audit and backup also work while it is stopped.
    """


def show_version(as_json: Json = False) -> None:
    """Print the version."""
    from llmhost.cli import show

    if as_json:
        show.value({"version": __version__})
    else:
        typer.echo(f"llmhost {__version__}")
