"""The recipes whose clients are no dependency of this project, run as they are written. They are installed once."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from cookbook import recipes
from installed import node_modules, python, run
from server_process import Node
from test_clients import TINY

import llmhost.engines.builtin

pytestmark = pytest.mark.bars

Bar = Callable[[str], None]

ROOM = 65_536
"""Tokens that an agent's instructions may take. The built-in model was not trained for so many, and says nothing of
sense about them; what is tried is that agents and server understand each other."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    yield from _running(Node(tmp_path_factory.mktemp("cookbook"), TINY))


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("roomy")
    model = Path(llmhost.engines.builtin.__file__).parent / "tiny"
    shutil.copytree(model, folder / "model")
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = ROOM
    (folder / "model" / "config.json").write_text(json.dumps(config))
    settings = (
        f'[models.coder]\nsource = "{folder}/model"\n[models.coder.options]\ndevice = "cpu"\n'
    )
    yield from _running(Node(folder, settings))


def _running(node: Node) -> Iterator[Node]:
    try:
        yield node.start()
        assert "Traceback" not in node.log()
    finally:
        node.close()


@pytest.mark.parametrize("title", ["OpenAI's JavaScript library", "The AI SDK"])
def test_javascript(tiny: Node, tmp_path: Path, bar: Bar, title: str) -> None:
    (recipe,) = [each for each in recipes(title, tiny.url) if each.language == "js"]
    (tmp_path / "recipe.mjs").write_text(recipe.code)
    (tmp_path / "node_modules").symlink_to(node_modules())
    ran = run(["node", "recipe.mjs"], tmp_path, {})
    assert (ran.stdout, ran.returncode) == (recipe.printed, 0), ran.stderr
    bar(f"recipe of {title}: runs as written")


@pytest.mark.parametrize(
    ("title", "name"), [("LangChain", "langchain"), ("LlamaIndex", "llamaindex")]
)
def test_python(tiny: Node, tmp_path: Path, bar: Bar, title: str, name: str) -> None:
    (recipe,) = recipes(title, tiny.url)
    (tmp_path / "recipe.py").write_text(recipe.code)
    ran = run([str(python(name)), "recipe.py"], tmp_path, {})
    assert (ran.stdout, ran.returncode) == (recipe.printed, 0), ran.stderr
    bar(f"recipe of {title}: runs as written")


def test_llm(tiny: Node, tmp_path: Path, bar: Bar) -> None:
    models, asking = recipes("llm", tiny.url)
    (tmp_path / "extra-openai-models.yaml").write_text(models.code)
    path = f"{python('llm').parent}:/usr/bin:/bin"
    ran = run(["sh", "-c", asking.code], tmp_path, {"PATH": path, "LLM_USER_PATH": str(tmp_path)})
    assert (ran.stdout, ran.returncode) == (asking.printed, 0), ran.stderr
    bar("recipe of llm: runs as written")


def test_codex(roomy: Node, tmp_path: Path, bar: Bar) -> None:
    settings, asking = recipes("Codex CLI", roomy.url)
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex" / "config.toml").write_text(settings.code)
    ran = _agent(asking.code, tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "ERROR" not in ran.stderr
    bar(f"recipe of Codex CLI: runs as written, {_asked(roomy, 'response')} requests answered")


def test_claude_code(roomy: Node, tmp_path: Path, bar: Bar) -> None:
    (asking,) = [each for each in recipes("Claude Code", roomy.url) if each.language == "sh"]
    ran = _agent(asking.code, tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "API Error" not in ran.stdout
    bar(f"recipe of Claude Code: runs as written, {_asked(roomy, 'chat')} requests answered")


def _agent(code: str, folder: Path) -> "CompletedProcess[str]":
    """An agent in a folder of its own, which is its home as well."""
    found = shutil.which("node")
    assert found is not None
    path = f"{node_modules() / '.bin'}:{Path(found).parent}:/usr/bin:/bin"
    return run(["sh", "-c", code], folder, {"HOME": str(folder), "PATH": path}, within_s=550)


def _asked(node: Node, kind: str) -> int:
    """Requests that were answered, of which there is at least one."""
    answered = [e for e in node.entries() if e.get("outcome") == "answered"]
    assert answered, node.log()[-2000:]
    return len(answered)
