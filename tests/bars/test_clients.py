"""Clients that people have, against a server of builtin:tiny. They are installed once, into the user's cache."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from installed import HERE, checks, python, run, run_node
from server_process import Node

pytestmark = pytest.mark.bars

Bar = Callable[[str], None]
TINY = """
[models.tiny]
engine = "torch"
source = "builtin:tiny"
aliases = ["gpt-4o-mini"]
[models.tiny.options]
device = "cpu"

[models.tiny-embed]
source = "builtin:tiny-embed"
[models.tiny-embed.options]
device = "cpu"
"""
LEAST_OF_LANGCHAIN = 43
"""Of LangChain's 50 tests of chats, those that pass. The others are skipped: images, sound, PDF files, JSON without a
schema, and recordings of answers."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("clients"), TINY)
    try:
        yield node.start()
        assert "Traceback" not in node.log()
    finally:
        node.close()


@pytest.mark.parametrize(("client", "least"), [("openai_node", 17), ("ai_sdk", 19)])
def test_a_javascript_client_works(
    tiny: Node, tmp_path: Path, bar: Bar, client: str, least: int
) -> None:
    ran = run_node(f"{client}.mjs", tmp_path, {"LLMHOST_URL": tiny.url})
    told = checks(ran.stdout)
    failed = [each for each in told if each["error"]]
    bar(f"{client}: {len(told)} checks, {len(failed)} failed")
    assert ran.returncode == 0, ran.stderr
    assert failed == []
    assert len(told) >= least


@pytest.mark.parametrize("route", ["chat", "responses"])
def test_langchains_standard_tests_pass(tiny: Node, tmp_path: Path, bar: Bar, route: str) -> None:
    interpreter = python("langchain")
    shutil.copy(HERE / "langchain_standard.py", tmp_path / "test_standard.py")
    loops = [f"asyncio_default_{what}_loop_scope=session" for what in ("test", "fixture")]
    options = [word for each in ("asyncio_mode=auto", *loops) for word in ("-o", each)]
    command = [str(interpreter), "-m", "pytest", "-v", "-p", "no:cacheprovider", *options]
    ran = run(command, tmp_path, {"LLMHOST_URL": tiny.url, "ROUTE": route}, within_s=600)
    told = re.findall(
        r"::(TestChat|TestEmbeddings)::(\S+) (PASSED|FAILED|ERROR|SKIPPED)", ran.stdout
    )
    chats = [(name, how) for kind, name, how in told if kind == "TestChat"]
    failed = [name for name, how in chats if how in ("FAILED", "ERROR")]
    skipped = sum(how == "SKIPPED" for _, how in chats)
    vectors = [how for kind, _, how in told if kind == "TestEmbeddings"]
    bar(
        f"LangChain by {route}: of {len(chats)} tests of chats {len(chats) - len(failed) - skipped} passed,"
        f" {skipped} were skipped, {len(failed)} failed ({', '.join(failed)});"
        f" {vectors.count('PASSED')} of {len(vectors)} of embeddings passed"
    )
    assert len(chats) == 50, ran.stdout[-2000:] + ran.stderr[-2000:]
    assert len(chats) - len(failed) - skipped >= LEAST_OF_LANGCHAIN
    assert set(vectors) == {"PASSED"}
