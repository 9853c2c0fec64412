"""Which node a command asks, and with which token."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from llmhost.cli.node import Node, NoNode, base_url, find_node, is_loopback, need_node


def write_server_file(folder: Path, **facts: Any) -> Path:
    path = folder / "server.json"
    known = {"url": "http://127.0.0.1:1", "pid": os.getpid(), "admin_token": "t"}
    path.write_text(json.dumps(known | facts))
    return path


def test_the_node_of_the_data_dir_is_found(node, tmp_path: Path):
    assert find_node(None, None) == Node(node.url, "admin-secret")
    assert find_node(None, tmp_path / "data") == Node(node.url, "admin-secret")


def test_there_is_none_where_nothing_was_started(tmp_path: Path):
    assert find_node(None, tmp_path) is None
    with pytest.raises(NoNode, match=r"No llmhost server runs on .*`llmhost serve`"):
        need_node(None, tmp_path)


def test_a_file_left_by_a_killed_server_names_no_node(tmp_path: Path):
    write_server_file(tmp_path, pid=2**22 + 1)

    assert find_node(None, tmp_path) is None


def test_a_process_that_took_over_the_number_is_not_the_server(tmp_path: Path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        write_server_file(tmp_path, url=f"http://127.0.0.1:{unused.getsockname()[1]}")

        assert find_node(None, tmp_path) is None


def test_a_named_node_gets_the_token_of_its_own_file_only(node):
    assert find_node(f"{node.url}/v1/", None) == Node(node.url, "admin-secret")
    assert find_node("http://elsewhere:8000", None) == Node("http://elsewhere:8000", None)


def test_the_environment_names_node_and_token(node, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMHOST_ADMIN_TOKEN", "other")
    assert find_node(None, None) == Node(node.url, "other")

    monkeypatch.setenv("LLMHOST_URL", "10.0.0.5:8000")
    assert find_node(None, None) == Node("http://10.0.0.5:8000", "other")
    assert find_node("http://a:1", None) == Node("http://a:1", "other")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"url": 1, "pid": 2, "admin_token": "t"}'])
def test_a_file_that_no_server_wrote_is_reported(tmp_path: Path, text: str):
    (tmp_path / "server.json").write_text(text)

    with pytest.raises(NoNode, match="is not what a server writes"):
        find_node(None, tmp_path)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://a:1", "http://a:1"),
        ("http://a:1/", "http://a:1"),
        ("https://a/v1", "https://a"),
        ("https://a/llm/v1/", "https://a/llm"),
        ("localhost:8000", "http://localhost:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_an_address_may_be_a_base_url_too(given: str, meant: str):
    assert base_url(given) == meant


@pytest.mark.parametrize("text", ["ftp://a", "http://", "http://[::1", "http://a:99999", "/v1"])
def test_what_is_no_address_is_refused(text: str):
    with pytest.raises(NoNode, match="is not the address of a node"):
        base_url(text)


def test_loopback_is_this_machine():
    assert all(map(is_loopback, ("http://localhost:1", "http://127.0.0.2", "http://[::1]:1")))
    assert not is_loopback("http://10.0.0.1")
