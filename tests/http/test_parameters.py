"""Every row of docs/parameters.md is sent to a server, which does what the row says."""

import re
from typing import Any

import httpx
import msgspec
import pytest
from server_process import Node
from tests.parameter_tables import ROUTES, WRONG, Route

EVERY = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
WITH_A_MODEL = {"model", "previous_response_id", "conversation"}
"""Another model may do something else than the route wants, and what is named has to be there."""
CANT_SPELL = re.compile(
    "The fake engine (has words only|can't say)|vocabulary can spell|does not support tools|has no tokens to ask"
)
"""Forms and suffixes are honoured, and this model is too simple for them: see the tests of structured answers."""


def ask(node: Node, route: Route, **more: Any) -> httpx.Response:
    return node.post(route.path, {**route.least, **more})


def param(response: httpx.Response) -> str:
    error = response.json()["error"]
    if isinstance(error, str):  # Ollama's, a sentence that names it
        found = re.search(r"'([\w.]+)'|^([\w.\[\]]+):", error)
        return "" if found is None else found[1] or found[2]
    named: str | None = error["param"] if "param" in error else error["details"]["param"]
    return named or ""


def code(response: httpx.Response) -> str:
    error = response.json()["error"]
    if isinstance(error, str):
        return "unsupported_parameter" if "is not supported" in error else ""
    found: str = error["code"] if "code" in error else error["details"]["error_code"]
    return found


@EVERY
def test_what_is_honoured_or_ignored_is_taken(open_node: Node, route: Route) -> None:
    for name, state in route.rows().items():
        if state != "refused" and name not in WITH_A_MODEL:
            response = ask(open_node, route, **route.asked(name))
            is_taken = response.status_code == 200 or CANT_SPELL.search(response.text)
            assert is_taken, (name, response.text)


@EVERY
def test_what_is_refused_is_refused_by_its_name(open_node: Node, route: Route) -> None:
    for name, state in route.rows().items():
        if state == "refused":
            response = ask(open_node, route, **route.asked(name))
            told = (response.status_code, code(response), param(response))
            assert told == (400, route.codes.get(name, "unsupported_parameter"), name)


@EVERY
def test_what_is_known_and_wrong_is_refused_by_its_name(open_node: Node, route: Route) -> None:
    known = {field.encode_name for field in msgspec.structs.fields(route.shape)}
    for name, state in route.rows().items():
        if name in known and state != "ignored":
            response = ask(open_node, route, **{name: WRONG})
            assert response.status_code == 400, (name, response.text)
            assert param(response).startswith(name), (name, response.text)


@EVERY
def test_what_nobody_knows_is_accepted(open_node: Node, route: Route) -> None:
    response = ask(open_node, route, some_vendors_word={"deep": [1, None]})

    assert response.status_code == 200
