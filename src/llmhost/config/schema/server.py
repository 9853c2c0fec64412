"""[server], [plugins] and [devices]: the process, its HTTP door, what it loads and what it may use."""

from typing import Annotated, Literal

from msgspec import Meta

from llmhost.config.schema.section import Positive, Seconds, Section


class ServerSettings(Section, frozen=True):
    """[server]: the process and its HTTP door."""

    host: str = "127.0.0.1"
    """Address to listen on. Any address but a loopback one requires an API key to exist."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """TCP port; 0 takes a free one, which `server.json` in the data dir names."""
    unix_socket: str | None = None
    """A path to listen on, in place of host and port."""
    unix_socket_mode: Literal["600", "660", "666"] = "600"
    """Who may connect there: this user, its group too, or everybody on this machine."""
    tls_cert: str | None = None
    """File with the certificate and those of its issuers, PEM; with `tls_key` the server speaks HTTPS alone."""
    tls_key: str | None = None
    """File with its key, PEM, without a password. When one of both files changes, new connections have the new one."""
    root_path: str = ""
    """Path under which a proxy serves it, such as "/llm": requests may begin with it, and need not."""
    data_dir: str = "~/.llmhost"
    """Where keys, ledger, analytics and downloaded models live. One process at a time."""
    drain_timeout_s: Seconds = 30.0
    """How long running answers may go on after SIGTERM or Ctrl-C before they are cut."""
    heartbeat_s: Annotated[float, Meta(gt=0)] = 10.0
    """A comment line is sent on a stream that has been silent for this long."""
    write_share: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """Part of a core that writing streams may take; beyond it, pieces are joined. Its first piece never waits."""
    keep_alive_s: Annotated[int, Meta(ge=1, le=86_400)] = 75
    """How long a connection may be idle between two requests; behind a proxy, longer than the proxy keeps its own."""
    max_body_bytes: Positive = 16 * 2**20
    """Larger request bodies are refused with 413."""
    cors_origins: tuple[str, ...] = ()
    """Origins of browsers that may call /v1 and /api; "*" allows all. Loopback always may; admin routes answer none."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe log line that is written."""
    log_format: Literal["text", "json"] = "text"
    """`text` for people, `json` for collectors: one object a line."""


class PluginSettings(Section, frozen=True):
    """[plugins]: drop-in files and installed packages."""

    dir: str | None = None
    """Folder of drop-in *.py plugins; `plugins` in the data dir when absent."""
    disabled: tuple[str, ...] = ()
    """Names of plugins not to load."""
    timeout_s: Annotated[float, Meta(gt=0)] = 2.0
    """How long one call of an asked hook may take before its rule decides."""


class DeviceSettings(Section, frozen=True):
    """[devices]: memory that models may use."""

    cpu_memory: str | None = None
    """Ceiling on weights and KV memory on the CPU, such as "8GiB"; 80% of what is free at start when absent."""
    gpu_memory_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """Share of each GPU's memory that models may use."""
