"""docs/errors.md has every error as the code has it, and docs/api.md every route."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from llmhost.core.errors import AlreadyRunning, ConfigError, LlmhostError
from llmhost.storage.connect import StorageFailed
from llmhost.testing import make_host

ROOT = Path(__file__).parents[2]
ERRORS = (ROOT / "docs" / "errors.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()
OFF_THE_WIRE = {ConfigError, AlreadyRunning}


def tree(kind: type[LlmhostError]) -> Iterator[type[LlmhostError]]:
    """The classes of core/errors.py; what a package derives for itself has the same facts."""
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == LlmhostError.__module__:
            yield from tree(child)


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_every_error_is_in_the_table_with_its_status_type_and_code():
    row = r"^\| `(\w+)` \| (\d+) \| `(\w+)` \| (?:`(\w+)`|null) \|"
    rows = re.findall(row, section(ERRORS, "On the wire"), re.MULTILINE)

    assert sorted(rows) == sorted(
        (kind.__name__, str(kind.status), kind.type, kind.code or "")
        for kind in {*tree(LlmhostError), StorageFailed} - OFF_THE_WIRE
    )


def test_errors_of_commands_are_in_their_own_table():
    rows = re.findall(
        r"^\| `(\w+)` \| `(\w+)` \|", section(ERRORS, "On the command line"), re.MULTILINE
    )

    assert rows == [("ConfigError", ConfigError.code), ("AlreadyRunning", AlreadyRunning.code)]


def test_every_error_says_when_it_comes_and_what_to_do():
    rows = [line for line in ERRORS.splitlines() if re.match(r"\| `[A-Z]\w+` \|", line)]

    assert all(cell.strip() for row in rows for cell in row.strip("|").split("|"))


async def test_the_example_is_what_the_server_says():
    example, anthropics = re.findall(r"```json\n(.+?)```", ERRORS, re.DOTALL)
    body = {"model": "tinny", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    async with make_host() as host:
        response = await host.chat("hello", model="tinny")
        message = (await host.client.post("/v1/messages", json=body)).json()

    assert response.status_code == 404
    assert response.json()["error"].keys() == json.loads(example)["error"].keys()
    assert response.json()["error"]["code"] == json.loads(example)["error"]["code"]
    shown = json.loads(anthropics)
    assert message.keys() == shown.keys()
    assert message["error"].keys() == shown["error"].keys()
    assert message["error"]["details"] == shown["error"]["details"]


# -- docs/api.md ----------------------------------------------------------------------------------------------------

ROUTE = r"^\| ([A-Z, ]+) \| `(/[^`]*)` \|"


async def test_the_routes_are_those_of_the_application():
    async with make_host() as host:
        schema = (await host.client.get("/schema")).json()
    described = {
        (method.upper(), path) for path, methods in schema["paths"].items() for method in methods
    }

    table = re.findall(ROUTE, section(API, "Routes"), re.MULTILINE)
    documented = {(method, path) for methods, path in table for method in methods.split(", ")}

    assert documented == described
