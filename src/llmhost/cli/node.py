"""Finding the node that a command is about: by --url, by the environment, or by `server.json` in the data dir."""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llmhost.core.errors import LlmhostError

if TYPE_CHECKING:
    from llmhost.config.load import LoadedSettings

SERVER_FILE = "server.json"
UNIX = "unix:"
"""What the address of a unix socket begins with."""
_PROBE_S = 2.0


class NoNode(LlmhostError):
    """No running node where one was needed."""


@dataclass(frozen=True, slots=True)
class Node:
    """A running node and the right to administer it."""

    url: str
    admin_token: str | None
    tls_cert: str | None = None
    """File with its certificate, where it is a node of this machine that speaks TLS."""


def load_settings(
    path: Path | None = None, flags: Mapping[str, object] | None = None
) -> "LoadedSettings":
    """As `serve` would see them from this directory."""
    from llmhost.config.environment import process_environment
    from llmhost.config.load import load

    return load(path, process_environment(), flags or {})


def find_data_dir(data_dir: Path | None) -> Path:
    return data_dir if data_dir is not None else load_settings().data_dir


def find_node(url: str | None, data_dir: Path | None) -> Node | None:
    """The node to ask; None when no url is given and none runs on the data dir."""
    from llmhost.config.environment import process_environment, read_variables

    variables = read_variables(process_environment())
    url = url or variables.url
    if url is None:
        node = read_server_file(find_data_dir(data_dir))
        if node is None or not answers(node.url):
            return None
        return replace(node, admin_token=variables.admin_token or node.admin_token)
    url = base_url(url)
    if variables.admin_token is not None:
        return Node(url, variables.admin_token)
    known = read_server_file(find_data_dir(data_dir))
    # The token of one node is never sent to another.
    return known if known is not None and known.url == url else Node(url, None)


def need_node(url: str | None, data_dir: Path | None) -> Node:
    node = find_node(url, data_dir)
    if node is None:
        raise NoNode(
            f"No llmhost server runs on {find_data_dir(data_dir)}."
            " Start one with `llmhost serve`, or name one with --url."
        )
    return node


def need_address(url: str | None, data_dir: Path | None) -> Node:
    """Where to send requests of callers: by `url`, by LLMHOST_URL, or the node of the data dir."""
    from llmhost.config.environment import process_environment, read_variables

    address = url or read_variables(process_environment()).url
    if address is None:
        folder = find_data_dir(data_dir)
        node = read_server_file(folder)
        if node is None:
            raise NoNode(
                f"No llmhost server runs on {folder}. Start one with `llmhost serve`"
                " in another terminal, or name one with --url."
            )
        return node
    return Node(base_url(address), None)


def socket_path(url: str) -> str | None:
    """The path in `unix:/run/llmhost.sock`; None for other addresses."""
    path = url.removeprefix(UNIX)
    return path if path != url else None


def base_url(url: str) -> str:
    """`http://host:port`, from that or from the base URL that OpenAI clients are given; or `unix:PATH`."""
    if (path := socket_path(url)) is not None:
        path = "/" + path.lstrip("/") if path.startswith("//") else path
        return f"{UNIX}{Path(path).expanduser().absolute()}"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise NoNode(
            f"{url!r} is not the address of a node, such as http://127.0.0.1:8000 or unix:/run/llmhost.sock."
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def read_server_file(data_dir: Path) -> Node | None:
    """What a node wrote when it started; None when there is none, or its process has gone."""
    path = data_dir / SERVER_FILE
    try:
        facts = json.loads(path.read_text())
        node = Node(base_url(facts["url"]), facts["admin_token"], facts.get("tls_cert"))
        pid = int(facts["pid"])
    except FileNotFoundError:
        return None
    except PermissionError:
        raise NoNode(
            f"{path} belongs to another user. Run this command as that user,"
            " or set LLMHOST_URL and LLMHOST_ADMIN_TOKEN."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise NoNode(f"{path} is not what a server writes. Remove it if none is running.") from None
    return node if _is_alive(pid) else None


def answers(url: str) -> bool:
    """Something listens there. A killed server leaves its file, and its process id may be in use again."""
    if (path := socket_path(url)) is not None:
        return _listens(path)
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=_PROBE_S).close()
    except OSError:
        return False
    return True


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
