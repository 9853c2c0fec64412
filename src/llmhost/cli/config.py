"""`llmhost config`: what the settings are, why, and whether they hold."""

import json
from typing import Annotated

import typer

from llmhost.cli import show
from llmhost.cli.node import load_settings
from llmhost.cli.options import Json, SettingsFile, examples
from llmhost.core.errors import ConfigError

config = typer.Typer(
    name="config",
    help="Explain and check settings.",
    no_args_is_help=True,
    epilog=examples("llmhost config explain", "llmhost config check --models models.toml"),
)


def add_to(app: typer.Typer) -> None:
    app.add_typer(config)


@config.command(
    epilog=examples(
        "llmhost config explain",
        "llmhost config explain server.port",
        "llmhost config explain --json",
    )
)
def explain(
    key: Annotated[
        str, typer.Argument(metavar="[KEY]", help="Only keys that begin like this.")
    ] = "",
    models: SettingsFile = None,
    as_json: Json = False,
) -> None:
    """Print every key with its value, where that came from, and what it means."""
    loaded = load_settings(models)
    from llmhost.config.describe import explain as explain_all

    found = [row for row in explain_all(loaded) if row.key.startswith(key)]
    if not found:
        raise ConfigError(f"No key begins with {key!r}. `llmhost config explain` lists all.")
    if as_json:
        show.value(
            [
                {
                    "key": row.key,
                    "value": row.value,
                    "origin": row.origin.kind,
                    "origin_name": row.origin.name or None,
                    "takes": row.takes,
                    "doc": row.doc,
                }
                for row in found
            ]
        )
        return
    for row in found:
        shown = "absent" if row.value is None else json.dumps(row.value, ensure_ascii=False)
        source = f"{row.origin.kind} {row.origin.name}".rstrip()
        typer.echo(f"{row.key} = {shown}  ({source})\n    {row.doc}")


@config.command(
    epilog=examples("llmhost config check", "llmhost config check --models new.toml --json")
)
def check(models: SettingsFile = None, as_json: Json = False) -> None:
    """Read file and environment as `serve` would. Exits with 1 and says why if they don't hold."""
    try:
        loaded = load_settings(models)
    except ConfigError as error:
        if not as_json:
            raise
        show.value({"ok": False, "file": models and str(models), "problem": error.message})
        raise typer.Exit(1) from None
    names = list(loaded.settings.models)
    if as_json:
        file = None if loaded.path is None else str(loaded.path)
        show.value({"ok": True, "file": file, "problem": None, "models": names})
        return
    source = loaded.path or "No models.toml; the built-in default"
    typer.echo(f"{source}: good, with {len(names)} model{'' if len(names) == 1 else 's'}")
    if not names:
        show.note("No model is declared, so there is nothing to serve. Add a table [models.NAME].")


@config.command(epilog=examples("llmhost config schema > models.schema.json"))
def schema() -> None:
    """Print the JSON schema of models.toml, for editors."""
    from llmhost.config.describe import json_schema

    show.value(json_schema())


@config.command(epilog=examples("llmhost config path", "llmhost config path --json"))
def path(models: SettingsFile = None, as_json: Json = False) -> None:
    """Print which settings file, data dir and plugin folder are in use."""
    loaded = load_settings(models)
    places = {
        "settings": loaded.path,
        "data_dir": loaded.data_dir,
        "plugins": loaded.plugins_dir,
    }
    if as_json:
        show.value({name: place and str(place.absolute()) for name, place in places.items()})
        return
    for name, place in places.items():
        typer.echo(f"{name:9} {place.absolute() if place else '-'}")
