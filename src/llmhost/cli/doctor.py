"""`llmhost doctor`: is everything here that serving needs, and what would make it better.

Looks from outside: packages by their metadata, GPUs through nvidia-smi, SQLite and torch in processes of their own.
So it stays fast, and a broken library cannot take it down.
"""

import os
import platform
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmhost import __version__
from llmhost.cli import show
from llmhost.cli.options import Json, SettingsFile, examples
from llmhost.core.errors import LlmhostError

if TYPE_CHECKING:
    from llmhost.config.schema.server import ServerSettings

GIB = 2**30
NEEDED = (
    "torch",
    "transformers",
    "litestar",
    "uvicorn",
    "msgspec",
    "pluggy",
    "sqlite-utils",
)
TORCH_TESTED = ((2, 11), (2, 13))
EXTRAS = {
    "gguf": ("llama-cpp-python", "GGUF models"),
    "redis": ("redis", "limits shared by a fleet"),
    "postgres": ("psycopg", "keys and ledger shared by a fleet"),
    "otel": ("opentelemetry-sdk", "traces"),
}
_DEEP = """
import torch
devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
for device in devices:
    assert (torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)).sum().item() == 64**3
print(", ".join(devices))
"""
_KERNELS = """
import torch
from llmhost.engines.torch.kernels.layers import silu_mul
for i in range(torch.cuda.device_count()):
    with torch.cuda.device(i):
        x = torch.ones(4, 256, device="cuda", dtype=torch.bfloat16)
        assert (silu_mul(x).float() - 0.7311).abs().max().item() < 0.01
print(", ".join(f"cuda:{i}" for i in range(torch.cuda.device_count())))
"""

Status = Literal["ok", "info", "warning", "missing"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `missing` fails the whole; `advice` says what to do."""

    name: str
    status: Status
    found: str
    advice: str | None = None


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples("llmhost doctor", "llmhost doctor --deep", "llmhost doctor --json")
    )(doctor)


def doctor(
    models: SettingsFile = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Also import torch and compute on each device.", show_default=False
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Look at this machine and installation. Exits with 1 when something needed is missing."""
    found = list(look(models, deep=deep))
    failed = any(finding.status == "missing" for finding in found)
    if as_json:
        show.value({"ok": not failed, "checks": [asdict(finding) for finding in found]})
    else:
        for finding in found:
            typer.echo(f"{finding.status:8} {finding.name:13} {show.printable(finding.found)}")
            if finding.advice:
                typer.echo(f"{'':22} {finding.advice}")
    if failed:
        raise typer.Exit(1)


def look(models: Path | None, *, deep: bool = False) -> Iterator[Finding]:
    """Every check, cheapest first."""
    yield python()
    yield Finding("llmhost", "ok", __version__)
    yield from (package(name) for name in NEEDED)
    yield uvloop()
    yield sqlite()
    yield from gpus()
    yield cores()
    yield memory()
    yield from settings(models)
    yield from extras()
    if deep:
        yield torch_works()
        if nvidia_smi() and cuda_of_torch():
            yield kernels_work()


def python() -> Finding:
    found = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()}"
    return Finding("python", "ok", found)


def package(name: str) -> Finding:
    found = installed(name)
    if found is None:
        return Finding(name, "missing", "not installed", f"pip install {name}")
    if name == "torch":
        return torch(found)
    return Finding(name, "ok", found)


def torch(found: str) -> Finding:
    low, high = (".".join(map(str, bound)) for bound in TORCH_TESTED)
    cuda = cuda_of_torch()
    shown = f"{found.partition('+')[0]}, {f'for CUDA {cuda}' if cuda else 'CPU only'}"
    if not TORCH_TESTED[0] <= numbers(found)[:2] <= TORCH_TESTED[1]:
        return Finding("torch", "warning", shown, f"llmhost is tested with torch {low} to {high}.")
    if cuda is None and nvidia_smi():
        advice = "There is a GPU, but this torch cannot use it: install a CUDA build of torch."
        return Finding("torch", "warning", shown, advice)
    return Finding("torch", "ok", shown)


def cuda_of_torch() -> str | None:
    """The CUDA version in torch/version.py, read without importing torch."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return None
    match = re.search(r"^cuda\b.*=\s*'([^']+)'", text, re.MULTILINE)
    return match[1] if match else None


def uvloop() -> Finding:
    found = installed("uvloop")
    if found is None:
        return Finding("uvloop", "info", "not installed", "pip install uvloop makes HTTP faster.")
    return Finding("uvloop", "ok", found)


def sqlite() -> Finding:
    """Asked of an interpreter of its own: only `storage` imports sqlite3 here."""
    found = run(sys.executable, "-c", "import sqlite3; print(sqlite3.sqlite_version)")
    if found is None:
        advice = "Install a Python that was built with SQLite."
        return Finding("sqlite", "missing", "no sqlite3 module", advice)
    from llmhost.storage.connect import wal_reset_warning

    if (advice_on_wal := wal_reset_warning(found)) is not None:
        return Finding("sqlite", "warning", found, advice_on_wal)
    return Finding("sqlite", "ok", found)


def gpus() -> Iterator[Finding]:
    lines = nvidia_smi()
    if not lines:
        yield Finding("gpu", "info", "none found; models run on the CPU")
        return
    for index, line in enumerate(lines):
        name, total, free, driver, _ = (part.strip() for part in line.split(","))
        yield Finding(
            f"gpu {index}", "ok", f"{name}, {free} MiB of {total} MiB free, driver {driver}"
        )
    if cuda_of_torch() is None:
        return  # torch's own finding says so: none of them can be used
    yield attention()
    yield Finding("cuda graphs", "ok", "steps that decode are recorded once and replayed")
    for index, line in enumerate(lines):
        capability = line.rpartition(",")[2].strip()
        yield prefill(index, capability)
        yield float8(index, capability)


def attention() -> Finding:
    """How a GPU attends: by our kernels, or slower."""
    from llmhost.config.environment import process_environment
    from llmhost.engines.kernel_needs import kernels_refusal, missing_headers

    if (reason := kernels_refusal(process_environment())) is not None:
        return Finding("attention", "warning", "torch, which is slower than kernels", f"{reason}.")
    found = f"triton, by kernels of Triton {installed('triton')}"
    if (lack := missing_headers()) is not None:
        return Finding("attention", "warning", found, f"{lack}.")
    return Finding("attention", "ok", found)


def prefill(index: int, capability: str) -> Finding:
    """Who attends to prompts, as far as it can be told before a model is loaded."""
    from llmhost.config.environment import process_environment
    from llmhost.engines import attention_libraries as libraries
    from llmhost.engines.kernel_needs import kernels_refusal

    environ = process_environment()
    name = f"prefill {index}"
    if kernels_refusal(environ) is not None:
        return Finding(name, "info", "torch, as attention is")
    known = numbers(capability)
    others: list[str] = []
    for library in libraries.LIBRARIES:
        release = libraries.installed_version(library)
        shown = f"{library.shown} {release}" if release else library.shown
        reason = libraries.library_refusal(
            library, (known[0], known[1]) if len(known) > 1 else None
        )
        has_kernels = library is not libraries.FLASHINFER or libraries.has_flashinfer_kernels(
            environ
        )
        if reason is None and not has_kernels:
            reason = "no kernels compiled"
        if reason is None:
            found = f"{shown}, where it proves right when a model is loaded; decode by triton"
            return Finding(name, "ok", "; ".join([found, *others]))
        others.append(f"{shown}: {reason}")
    return Finding(name, "ok", "; ".join(["triton", *others]))


def float8(index: int, capability: str) -> Finding:
    """Whether weights and KV cache can be kept in 8 bits."""
    from llmhost.engines.torch.narrow_sizes import LEAST_CAPABILITY

    name, least = f"fp8 {index}", ".".join(map(str, LEAST_CAPABILITY))
    if not numbers(capability):
        return Finding(name, "info", "not known: nvidia-smi does not say the compute capability")
    if numbers(capability) < LEAST_CAPABILITY:
        found = f"no: compute capability {capability}, and float8 needs {least}"
        return Finding(name, "info", found)
    return Finding(name, "ok", f"yes, compute capability {capability}")


def nvidia_smi() -> list[str]:
    """A line for each GPU: name, MiB, free MiB, driver, compute capability."""
    query = "--query-gpu=name,memory.total,memory.free,driver_version,compute_cap"
    found = run("nvidia-smi", query, "--format=csv,noheader,nounits")
    return [line for line in (found or "").splitlines() if line.count(",") == 4]


def cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("cores", "ok", f"{usable} usable of {os.cpu_count()}")


def memory() -> Finding:
    import psutil

    seen = psutil.virtual_memory()
    found = f"{show.memory(seen.available)} of {show.memory(seen.total)} free"
    if seen.available < GIB:
        return Finding("memory", "warning", found, "Little is left for weights and KV cache.")
    return Finding("memory", "ok", found)


def settings(models: Path | None) -> Iterator[Finding]:
    from llmhost.cli.node import load_settings, read_server_file

    try:
        loaded = load_settings(models)
        node = read_server_file(loaded.data_dir)
    except LlmhostError as error:
        yield Finding("settings", "missing", str(error), "llmhost config check says the same.")
        return
    yield Finding("settings", "ok", str(loaded.path or "built-in default"))
    yield data_dir(loaded.data_dir)
    yield disk(loaded.data_dir)
    yield statements(loaded.data_dir / "statement_key")
    if node is not None:
        yield Finding("port", "ok", f"llmhost is serving at {node.url}")
    else:
        yield listening(loaded.settings.server)
    yield from tls(loaded.settings.server)


def listening(server: "ServerSettings") -> Finding:
    """Whether what it would listen on is free."""
    if server.unix_socket is None:
        return port(server.host, server.port)
    from llmhost.cli.node import answers, base_url

    address = base_url(f"unix:{server.unix_socket}")
    if answers(address):
        return Finding("socket", "warning", f"{address} is taken", "Stop it, or use --uds.")
    return Finding("socket", "ok", f"{address} is free")


def tls(server: "ServerSettings") -> Iterator[Finding]:
    """Nothing where plain HTTP is spoken."""
    from llmhost.host.tls import certificate_of

    try:
        certificate = certificate_of(server)
    except LlmhostError as error:
        yield Finding("TLS", "missing", str(error))
        return
    if certificate is not None:
        yield Finding("TLS", "ok", str(certificate.cert))


def data_dir(folder: Path) -> Finding:
    if not folder.exists():
        above = _existing(folder)
        if os.access(above, os.W_OK):
            return Finding("data dir", "ok", f"{folder} (made on the first start)")
        return Finding(
            "data dir", "missing", f"{folder} cannot be made", f"{above} is not writable."
        )
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return Finding(
            "data dir", "missing", f"{folder} is not a writable folder", "Use --data-dir."
        )
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        advice = f"Others on this machine may look into it: chmod 700 {folder}"
        return Finding("data dir", "warning", str(folder), advice)
    return Finding("data dir", "ok", str(folder))


def statements(secret: Path) -> Finding:
    """The public key that customers check their statements with."""
    from llmhost.cost.ed25519 import public_key

    try:
        key = public_key(bytes.fromhex(secret.read_text().strip())).hex()
    except FileNotFoundError:
        return Finding("statements", "info", "the key to sign them is made on the first start")
    except (OSError, ValueError) as error:
        advice = "Statements can't be signed. Restore the file from a backup."
        return Finding("statements", "missing", f"{secret}: {error}", advice)
    if stat.S_IMODE(secret.stat().st_mode) & 0o077:
        return Finding("statements", "warning", f"signed with {key}", f"chmod 600 {secret}")
    return Finding("statements", "ok", f"signed with {key}")


def disk(folder: Path) -> Finding:
    free = shutil.disk_usage(_existing(folder)).free
    found = f"{show.memory(free)} free for the data dir"
    if free < 5 * GIB:
        return Finding("disk", "warning", found, "Models and ledger need room to grow.")
    return Finding("disk", "ok", found)


def port(host: str, number: int) -> Finding:
    if number == 0:
        return Finding("port", "ok", "any free one")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        advice = "Stop what listens there, or serve on another --port."
        return Finding("port", "warning", f"{host}:{number}: {error.strerror}", advice)
    return Finding("port", "ok", f"{host}:{number} is free")


def extras() -> Iterator[Finding]:
    for extra, (name, use) in EXTRAS.items():
        found = installed(name)
        if found is None:
            advice = f"pip install 'llmhost[{extra}]'"
            yield Finding(
                extra, "info", f"not installed, and not used by this version; for {use}", advice
            )
        else:
            yield Finding(extra, "ok", f"{name} {found}")


def torch_works() -> Finding:
    found = run(sys.executable, "-c", _DEEP, timeout_s=120)
    if found is None:
        advice = (
            "Run python -c 'import torch' to see why; the driver may be too old for this torch."
        )
        return Finding("compute", "missing", "torch fails to import or compute", advice)
    return Finding("compute", "ok", f"torch computes on {found}")


def kernels_work() -> Finding:
    found = run(sys.executable, "-c", _KERNELS, timeout_s=120)
    if found is None:
        return Finding(
            "kernels",
            "warning",
            "Triton fails to compile or run a kernel; torch attends instead",
            "llmhost doctor says under attention what is missing, if it can be seen.",
        )
    return Finding("kernels", "ok", f"a kernel was compiled and is right on {found}")


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def numbers(text: str) -> tuple[int, ...]:
    """`2.13.0+cpu` as (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()


def run(*command: str, timeout_s: float = 20) -> str | None:
    """What a program says, or None when it is absent, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())
