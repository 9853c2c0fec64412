"""`llmhost models`, `ps`, `load`, `unload`, `sleep` and `wake`: what is served, and what of it is in memory."""

from pathlib import Path
from typing import Annotated, Any

import typer

from llmhost.cli import show
from llmhost.cli.node import find_node, load_settings, need_node
from llmhost.cli.options import DataDir, Json, Url, examples

Name = Annotated[str, typer.Argument(metavar="NAME", help="The model's name or an alias.")]


def add_to(app: typer.Typer) -> None:
    app.command(name="models", epilog=examples("llmhost models", "llmhost models --json"))(models)
    app.command(epilog=examples("llmhost ps", "llmhost ps --url http://10.0.0.5:8000"))(ps)
    app.command(epilog=examples("llmhost load tiny", "llmhost load tiny --json"))(load)
    app.command(epilog=examples("llmhost unload tiny", "llmhost unload tiny --json"))(unload)
    app.command(epilog=examples("llmhost sleep tiny", "llmhost sleep tiny --json"))(sleep)
    app.command(epilog=examples("llmhost wake tiny", "llmhost wake tiny --json"))(wake)


def models(url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the models that the node offers.

    While no node runs, this is what the settings declare. FILES are present, partial where a fetch was cut off, or
    absent: the first load fetches them, or `llmhost pull` ahead of it. Prices are dollars per million tokens: input,
    cached, output.
    """
    node = find_node(url, data_dir)
    if node is None:
        data = _declared(data_dir)
    else:
        from llmhost.cli.client import HttpAdmin

        with HttpAdmin(node) as admin:
            data = admin.models()
    columns: dict[str, show.Cell] = {
        "name": "name",
        "version": "version",
        "engine": "engine",
        "source": "source",
        "files": "files",
        "state": _state,
        "aliases": "aliases",
        "price": lambda row: show.price(row.get("price")),
    }
    show.rows(data, columns, as_json=as_json, empty="No models. Declare one in models.toml.")


def ps(url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the models that are loaded, with their memory and how busy they are.

    WEIGHTS were loaded, and PREDICTED was leased for them from the files' headers. MEASURED is what a GPU, or
    llama.cpp of a GGUF file, says that loading took; else it is the growth of the process, its libraries included. KV
    CACHE is leased.
    """
    from llmhost.cli.client import HttpAdmin

    with HttpAdmin(need_node(url, data_dir)) as admin:
        data = admin.ps()
    columns: dict[str, show.Cell] = {
        "model": "model",
        "state": "state",
        "device": "device",
        "weights": lambda row: show.memory(row.get("weights_bytes")),
        "predicted": lambda row: show.memory(row.get("predicted_bytes")),
        "measured": lambda row: show.memory(row.get("measured_bytes")),
        "kv cache": lambda row: show.memory(row.get("kv_bytes")),
        "kv used": _kv_used,
        "running": "running",
        "waiting": "waiting",
        "since": lambda row: show.age(row.get("since_ns")),
    }
    show.rows(data, columns, as_json=as_json, empty="No model is loaded.")


def load(model: Name, url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Load a model now instead of on its first request."""
    _turn("load", model, need_node(url, data_dir), as_json)


def unload(model: Name, url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Let a model's running answers finish, then free its memory."""
    _turn("unload", model, need_node(url, data_dir), as_json)


def sleep(model: Name, url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Let a model's running answers finish, then move its weights to host memory.

    The memory of its device is free for others then. The next request wakes it, without reading its files again.
    """
    _turn("sleep", model, need_node(url, data_dir), as_json)


def wake(model: Name, url: Url = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Bring a sleeping model back to its device now instead of on its next request."""
    _turn("wake", model, need_node(url, data_dir), as_json)


def _turn(verb: str, model: str, node: Any, as_json: bool) -> None:
    from llmhost.cli.client import HttpAdmin

    with HttpAdmin(node) as admin:
        row = getattr(admin, verb)(model)
    if as_json:
        show.value(row)
        return
    took = f" after {row['took_s']:.1f} s" if row.get("took_s") is not None else ""
    size = f", {show.memory(row['bytes'])}" if row.get("bytes") else ""
    typer.echo(f"{show.printable(str(row['model']))} is {row['state']}{took}{size}")


def _declared(data_dir: Path | None) -> list[dict[str, Any]]:
    from llmhost.deploy.sources import presence

    loaded = load_settings()
    models_dir = (data_dir or loaded.data_dir) / "models"
    source = loaded.path or "the built-in default"
    show.note(f"No llmhost server is running. This is what {source} declares.")
    return [
        {
            "name": name,
            "version": None,
            "engine": spec.engine,
            "source": spec.source,
            "aliases": list(spec.aliases),
            "files": None if spec.engine == "fake" else presence(spec.source, models_dir),
            "state": "stopped",
            "reason": None,
            "price": None if spec.price is None else _parts(spec.price),
            "load": spec.load,
            "adapters": spec.adapters,
        }
        for name, spec in loaded.settings.models.items()
    ]


def _parts(price: Any) -> dict[str, Any]:
    return {key: getattr(price, key) for key in price.__struct_fields__}


def _state(row: show.Row) -> str:
    reason = row.get("reason")
    return f"{row.get('state')} ({reason})" if reason else str(row.get("state"))


def _kv_used(row: show.Row) -> str | None:
    total = row.get("kv_blocks_total")
    return f"{100 * row.get('kv_blocks_used', 0) / total:.0f}%" if total else None
