"""`llmhost plugins`."""

from typing import Any

import typer

from llmhost.cli import show
from llmhost.cli.node import find_node, load_settings
from llmhost.cli.options import DataDir, Json, PluginsDir, SettingsFile, Url, examples


def add_to(app: typer.Typer) -> None:
    app.command(
        name="plugins",
        epilog=examples("llmhost plugins", "llmhost plugins --plugins ./plugins --json"),
    )(plugins)


def plugins(
    models: SettingsFile = None,
    folder: PluginsDir = None,
    url: Url = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List plugins, the hooks they implement, and how those calls went.

    While no node runs, or with --plugins, the folder is loaded and listed without calls.
    """
    node = find_node(url, data_dir) if folder is None else None
    if node is not None:
        from llmhost.cli.client import HttpAdmin

        with HttpAdmin(node) as admin:
            data = admin.plugins()
    else:
        data = _of_folder(models, folder)
    columns: dict[str, show.Cell] = {
        "name": "name",
        "version": "version",
        "hooks": "hooks",
        "calls": "calls",
        "errors": "errors",
        "p50 ms": "p50_ms",
        "p99 ms": "p99_ms",
    }
    show.rows(data, columns, as_json=as_json, empty="No plugins.")


def _of_folder(models: Any, folder: Any) -> list[dict[str, Any]]:
    loaded = load_settings(models, {"plugins.dir": None if folder is None else str(folder)})
    from llmhost.host import list_plugins

    data: list[dict[str, Any]] = list_plugins(loaded)
    return data


def find_command(name: str) -> Any:
    """The click command of that name which a plugin hands in, or None.

    Loads the plugins that a node with these settings would load; one that fails is logged and goes without.
    """
    import typer.main

    from llmhost.hooks.call import collect
    from llmhost.hooks.registry import Plugins

    loaded = load_settings()
    plugins = Plugins.load(loaded.settings.plugins, folder=loaded.plugins_dir)
    for found in collect(plugins, "register_commands"):
        if isinstance(found.item, typer.Typer):
            command = typer.main.get_command(found.item)
        else:
            alone = typer.Typer(add_completion=False, rich_markup_mode=None)
            alone.command()(found.item)
            command = typer.main.get_command(alone)
        if command.name == name:
            return command
    return None
