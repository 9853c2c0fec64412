"""The process environment, read and written here and nowhere else.

Every key of the fixed tables has a variable, `LLMHOST_<TABLE>_<KEY>`; a few more steer the command line and debugging.
Any other `LLMHOST_*` variable is an error, so that a misspelt one cannot be overlooked. Values stay text here:
`config.load` converts them, since it knows how to say where a bad one came from.
"""

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import msgspec

from llmhost.config.schema import Settings
from llmhost.config.schema.section import Section
from llmhost.core.errors import ConfigError

PREFIX = "LLMHOST_"

TABLES: dict[str, type[Section]] = {
    field.name: field.type for field in msgspec.structs.fields(Settings) if field.name != "models"
}
"""The tables that every file may have once; [models.NAME] comes as often as there are models."""

VARIABLES: dict[str, tuple[str, str]] = {
    f"{PREFIX}{table}_{key}".upper(): (table, key)
    for table, section in TABLES.items()
    for key in section.__struct_fields__
}
"""Variable name to table and key."""

OTHER_VARIABLES = {
    "LLMHOST_URL": "Address of the node that commands talk to, such as http://127.0.0.1:8000.",
    "LLMHOST_ADMIN_TOKEN": "Admin token for that node. Needed only where its data dir is out of reach.",
    "LLMHOST_API_KEY": "API key that `llmhost chat` and `llmhost bench` send.",
    "LLMHOST_TRACE_HOOKS": "1 logs each call of a plugin hook with its answer.",
}

# Kubernetes describes every service of a namespace to each of its pods in variables of its own; a service that is
# called llmhost, or llmhost-server, would otherwise keep the server from starting.
_SERVICE_LINK = re.compile(
    r"LLMHOST_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class Variables:
    """What the environment says besides settings."""

    url: str | None = None
    admin_token: str | None = None
    api_key: str | None = None
    trace_hooks: bool = False


def process_environment() -> MutableMapping[str, str]:
    """The real one. Whoever needs it passes it on as an argument, so that tests bring their own."""
    return os.environ


def keep_kernels(environ: MutableMapping[str, str], folder: Path) -> None:
    """Have compiled GPU kernels kept in `folder`, so that the next start compiles none, unless the environment names
    another place. Called before an engine is imported."""
    environ.setdefault("TRITON_CACHE_DIR", str(folder))


def read_variables(environ: Mapping[str, str]) -> Variables:
    """Raises ConfigError when LLMHOST_TRACE_HOOKS is neither on nor off."""
    trace = environ.get("LLMHOST_TRACE_HOOKS", "").lower()
    if trace not in ("", "0", "false", "1", "true"):
        raise ConfigError(f"LLMHOST_TRACE_HOOKS is {trace!r} but must be 1 or 0.")
    return Variables(
        url=environ.get("LLMHOST_URL") or None,
        admin_token=environ.get("LLMHOST_ADMIN_TOKEN") or None,
        api_key=environ.get("LLMHOST_API_KEY") or None,
        trace_hooks=trace in ("1", "true"),
    )


def read_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Variable name to text, for each variable that sets a key. Raises ConfigError on unknown LLMHOST_* names."""
    ours = {name: text for name, text in environ.items() if name.startswith(PREFIX)}
    found = {}
    for name, text in sorted(ours.items()):
        if _is_service_link(name, text) or name in OTHER_VARIABLES:
            continue
        if name not in VARIABLES:
            raise ConfigError(f"The environment variable {name} sets nothing.{_nearest(name)}")
        found[name] = text
    return found


def _is_service_link(name: str, text: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(name)) or (
        name.endswith("PORT") and bool(_SERVICE_ADDRESS.match(text))
    )


def _nearest(name: str) -> str:
    if name.startswith("LLMHOST_MODELS"):
        return " Models are declared in models.toml only."
    close = get_close_matches(name, [*VARIABLES, *OTHER_VARIABLES], n=1)
    if close:
        return f" Did you mean {close[0]}?"
    return " docs/config.md lists those that do."
