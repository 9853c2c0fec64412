"""The first screen says what the program says, and the examples of the pages work."""

import re
from pathlib import Path
from types import ModuleType

import pytest
from openai import OpenAI

from llmhost.host import banner
from llmhost.testing import at, make_host

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
URL = "http://127.0.0.1:8000"


def blocks(name: str) -> list[str]:
    return PYTHON.findall((ROOT / name).read_text())


def plugin(code: str) -> ModuleType:
    module = ModuleType("example")
    exec(compile(code, "example", "exec"), module.__dict__)
    return module


def test_the_first_line_is_what_the_server_prints(capsys: pytest.CaptureFixture[str]):
    banner.print_start(URL, as_json=False)

    assert capsys.readouterr().out in README


def test_the_first_request_is_the_one_that_the_server_shows():
    assert banner._first_request(URL, "tiny", needs_key=False) in README


def test_the_two_commands_are_there_with_their_output():
    first_screen = README.partition("## ")[0]

    assert re.search(
        r"\$ make serve\nllmhost .* on http.*(\n  .*)+\nReady after [0-9.]+ s, ", first_screen
    )
    assert re.search(r"\$ make test\n[0-9]+ passed", first_screen)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_in_python_compile(page: Path):
    for code in PYTHON.findall(page.read_text()):
        compile(code, str(page), "exec")


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_client_of_the_example_talks_to_the_server_of_the_page(page: str):
    (code,) = [code for code in blocks(page) if "OpenAI(" in code]
    (call,) = re.findall(r"^client = (OpenAI\(.+\))$", code, re.MULTILINE)

    with eval(call, {"OpenAI": OpenAI}) as client:
        assert str(client.base_url) == f"{URL}/v1/"


@pytest.mark.parametrize(
    ("page", "moment", "share"),
    [
        ("README.md", "2026-01-10T03:00", 0.5),
        ("README.md", "2026-01-10T12:00", 1),
        ("docs/quickstart.md", "2026-01-09T12:00", 0),  # a Friday
        ("docs/quickstart.md", "2026-01-10T12:00", 1),
    ],
)
async def test_the_plugin_of_the_page_does_what_it_says(page: str, moment: str, share: float):
    (code,) = [code for code in blocks(page) if "hookimpl" in code]

    async with make_host(plugins=[plugin(code)], clock=at(moment)) as host:
        await host.say("hello", max_tokens=8)
        assert host.entries()[-1]["amount_nano"] == share * (3 * 100 + 8 * 400)


async def test_the_test_that_contributing_shows_passes():
    (code,) = [code for code in blocks("docs/contributing.md") if "make_host" in code]

    await plugin(code).test_eight_words_are_billed()
