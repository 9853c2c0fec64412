"""`llmhost serve`."""

from pathlib import Path
from typing import Annotated

import typer

from llmhost.cli.node import load_settings
from llmhost.cli.options import Json, PluginsDir, SettingsFile, examples
from llmhost.core.imports import long_import


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "llmhost serve",
            "llmhost serve --models /etc/llmhost/models.toml --host 0.0.0.0",
            "llmhost serve --port 0 --data-dir ./data --log-level debug",
            "llmhost serve --uds /run/llmhost/llmhost.sock",
            "llmhost serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem",
        )
    )(serve)


def serve(
    models: SettingsFile = None,
    host: Annotated[str | None, typer.Option(metavar="H", help="Address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option(metavar="P", help="TCP port; 0 takes a free one.")
    ] = None,
    uds: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Listen on a unix socket there, and on no port."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate, PEM: speak HTTPS.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate's key, PEM.")
    ] = None,
    root_path: Annotated[
        str | None, typer.Option(metavar="P", help="Path under which a proxy serves it.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where keys, ledger and downloaded models live."),
    ] = None,
    plugins: PluginsDir = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="L", help="debug, info, warning or error.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve the models of models.toml; the built-in model `tiny` without one.

    Ctrl-C or SIGTERM lets running answers finish; a second Ctrl-C leaves at once.
    """
    loaded = load_settings(
        models,
        {
            "server.host": host,
            "server.port": port,
            "server.unix_socket": _text(uds),
            "server.tls_cert": _text(tls_cert),
            "server.tls_key": _text(tls_key),
            "server.root_path": root_path,
            "server.data_dir": _text(data_dir),
            "plugins.dir": _text(plugins),
            "server.log_level": log_level,
        },
    )
    with long_import():
        from llmhost.host import serve as run

    raise typer.Exit(run(loaded, as_json=as_json))


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
