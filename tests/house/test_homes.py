"""One home per library, pure deciders, and nothing heavy where a newcomer first looks."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).parents[2] / "src" / "llmhost"

HOMES = {
    "torch": {"engines", "optimize"},
    "transformers": {"engines", "optimize"},
    "triton": {"engines"},
    "llama_cpp": {"engines", "optimize"},
    "litestar": {"api"},
    "multipart": {"api"},
    "uvicorn": {"host"},
    "uvloop": {"host"},
    "pluggy": {"hooks"},
    "typer": {"cli"},
    "huggingface_hub": {"deploy"},
    "rich": {"cli", "engines"},  # the trainer of the built-in models shows its progress
    "sqlite3": {"storage"},
    "sqlite_utils": {"storage"},
    "diskcache": {"cache"},
    "llguidance": {"text"},
    "llvmlite": {"engines"},
    "tokenizers": {"text", "engines"},
    "jinja2": {"text"},
    "prometheus_client": {"observe"},
    "psutil": {"gpu", "deploy", "storage", "host", "cli"},
}
"""Where a library may be imported. What is not listed may be imported anywhere."""

PURE = [
    "schedule/plan.py",
    "schedule/kv_books.py",
    "schedule/prefix.py",
    "schedule/sequence_kv.py",
    "schedule/host_tier.py",
    "schedule/waiting.py",
    "schedule/predictor.py",
    "schedule/sequence.py",
    "schedule/scheduler.py",
    "schedule/limits.py",
    "schedule/patience.py",
    "schedule/accounts.py",
    "schedule/rows.py",
    "schedule/saying.py",
    "schedule/steady.py",
    "schedule/drafting.py",
    "schedule/drain.py",
    "schedule/speculation.py",
    "engines/drawing.py",
    "deploy/memory_plan.py",
    "cache/answer.py",
    "cache/keys.py",
    "cache/memory.py",
    "cache/policy.py",
    "cache/wish.py",
    "cost/pricing.py",
    "cost/chain.py",
    "cost/entries.py",
    "pipeline/batches/record.py",
    "pipeline/batches/lines.py",
    "tenants/balance.py",
    "tenants/budgets.py",
    "tenants/gcra.py",
    "tenants/periods.py",
    "tenants/pots.py",
    "safety/labels.py",
    "safety/review.py",
    "safety/rules.py",
    "safety/window.py",
    "gpu/memory.py",
    "core/step.py",
    "cli/bench/lengths.py",
    "cli/bench/workload.py",
    "cli/bench/figures.py",
]
IMPURE_LIBRARIES = {"asyncio", "threading", "time", "logging", "torch", "socket", "sqlite3"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_each_library_is_imported_from_its_home_only() -> None:
    strays = [
        f"{path.relative_to(SRC)}: {library} belongs in {' or '.join(sorted(HOMES[library]))}"
        for path in SRC.rglob("*.py")
        for library in HOMES.keys() & set(imports(path))
        if path.relative_to(SRC).parts[0] not in HOMES[library]
        and path.relative_to(SRC).parts != ("testing.py",)
    ]

    assert strays == []


def test_deciders_read_no_clock_and_start_no_thread() -> None:
    impure = {
        name: found for name in PURE if (found := IMPURE_LIBRARIES & set(imports(SRC / name)))
    }

    assert impure == {}


def test_the_environment_is_read_in_config_alone() -> None:
    readers = [
        str(path.relative_to(SRC))
        for path in SRC.rglob("*.py")
        if "os.environ" in path.read_text() or "getenv" in path.read_text()
    ]

    assert readers == ["config/environment.py"]


def test_importing_llmhost_imports_nothing_heavy() -> None:
    code = "import sys, llmhost; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert not {"torch", "transformers", "litestar", "pluggy", "typer"} & set(done.stdout.split())


NEVER_IN_A_FAKE_NODE = {
    *("torch", "transformers", "huggingface_hub", "safetensors", "llama_cpp", "gguf", "llvmlite"),
    *("scipy", "sympy", "pandas", "PIL", "sklearn", "triton", "accelerate"),
    *("pydantic", "attr", "polyfactory", "faker", "httpx2", "IPython", "pytest"),
}


def test_a_fake_node_never_imports_torch_nor_what_else_it_does_not_use() -> None:
    code = (
        "import asyncio, sys\n"
        "from llmhost.testing import make_host\n"
        "async def main():\n"
        "    async with make_host() as host:\n"
        "        host.host.app.routes.register()\n"
        "        await host.say('hello', max_tokens=2)\n"
        "asyncio.run(main())\n"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert NEVER_IN_A_FAKE_NODE & set(done.stdout.split()) == set()
