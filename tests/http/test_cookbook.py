"""Recipes whose clients the tests have anyway, run as they are written. The others are bars."""

import contextlib
import io
import shutil
import subprocess
from typing import Any

import pytest
from cookbook import recipes
from server_process import PATIENCE_S, Node


@pytest.mark.parametrize("title", ["OpenAI's Python library", "Anthropic's Python library"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # recipes close no client
def test_what_a_page_of_python_prints_is_what_it_says(tiny_node: Node, title: str) -> None:
    space: dict[str, Any] = {"__name__": "recipe"}
    for recipe in recipes(title, tiny_node.url):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(recipe.code, title, "exec"), space)
        assert said.getvalue() == recipe.printed
    space["client"].close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_what_curl_prints_is_what_is_said(tiny_node: Node) -> None:
    for recipe in recipes("curl", tiny_node.url):
        command = ["sh", "-c", recipe.code]
        ran = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=True)
        assert ran.stdout.decode().strip() == (recipe.printed or "").strip()
