"""Versions: the same model keeps its own, another one gets the next, and every change of state is on record."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmhost.config.schema.models import ModelSpec
from llmhost.core.events import DeploymentChanged
from llmhost.deploy.registry import SCHEMA, Registry
from llmhost.storage.writer import Writer
from llmhost.testing import ManualClock, at


class Node:
    """A registry that can be closed and opened again, and a folder with a model's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = path / "files"
        self.files.mkdir()
        (self.files / "config.json").write_text("{}")
        (self.files / "model.safetensors").write_bytes(b"weights" * 200_000)
        self.clock: ManualClock = at("2026-01-10T03:00Z")
        self.open()

    def open(self) -> None:
        self.writer = Writer(self.path / "registry.db", migrations=[SCHEMA])
        self.registry = Registry(self.writer, node_id="node-1", clock=self.clock)

    def restart(self) -> None:
        self.writer.close()
        self.clock.advance(60)
        self.open()

    def version(self, **spec: Any) -> int:
        wanted = ModelSpec(**{"source": str(self.files), **spec})
        [entry] = self.registry.declare({"m": wanted}, self.path / "models")
        return entry.ref.version

    def rows(self, table: str) -> list[dict[str, Any]]:
        self.writer.close()
        with sqlite3.connect(self.path / "registry.db") as connection:
            connection.row_factory = sqlite3.Row
            rows = [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]
        connection.close()
        return rows


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.writer.close()


def test_the_same_files_are_the_same_version_over_restarts(node: Node) -> None:
    assert node.version() == 1
    node.restart()
    assert node.version() == 1


def test_a_model_keeps_the_time_when_its_version_was_first_declared(node: Node) -> None:
    spec = {"m": ModelSpec(source=str(node.files))}
    [first] = node.registry.declare(spec, node.path)
    node.restart()
    [again] = node.registry.declare(spec, node.path)

    assert again.created_s == first.created_s == node.clock.utc_ns() // 10**9 - 60


def test_settings_that_leave_the_answers_alone_make_no_version(node: Node) -> None:
    assert node.version() == 1
    assert node.version(max_batch_size=3, aliases=("other",), load="request") == 1


@pytest.mark.parametrize("change", ["content", "new_file", "gone", "weights", "size"])
def test_other_files_are_another_version(node: Node, change: str) -> None:
    assert node.version() == 1
    weights = node.files / "model.safetensors"
    match change:
        case "content":
            (node.files / "config.json").write_text("[]")
        case "new_file":
            (node.files / "chat_template.jinja").write_text("")
        case "gone":
            (node.files / "config.json").unlink()
        case "weights":  # trained on: other numbers in as many bytes
            weights.write_bytes(b"WEIGHTS" * 200_000)
        case "size":
            weights.write_bytes(b"weights" * 200_001)

    assert node.version() == 2
    assert node.version() == 2


def test_another_engine_or_source_is_another_version(node: Node) -> None:
    assert node.version() == 1
    assert node.version(engine="fake") == 2
    assert node.version(source="builtin:tiny") == 3


def test_another_precision_is_another_version(node: Node) -> None:
    assert node.version() == 1
    assert node.version(options={"weights": "fp8"}) == 2
    assert node.version(options={"weights": "fp8", "kv_dtype": "fp8"}) == 3
    assert node.version(options={"weights": "fp8", "kv_dtype": "fp8", "threads": 2}) == 3
    assert node.version(options={"weights": "auto"}) == 4


def test_going_back_is_a_new_version_too_because_versions_only_grow(node: Node) -> None:
    assert [node.version(), node.version(engine="fake"), node.version()] == [1, 2, 3]


def test_a_first_download_makes_no_second_version(node: Node) -> None:
    source = "hf:org/name"
    assert node.version(source=source) == 1
    fetched = node.path / "models" / "org--name" / "main"
    fetched.mkdir(parents=True)
    (fetched / "config.json").write_text("{}")
    (fetched / ".llmhost-complete").touch()
    node.restart()
    assert node.version(source=source) == 1
    (fetched / "config.json").write_text("[]")
    assert node.version(source=source) == 2


def test_files_that_are_away_for_a_while_make_no_version(node: Node) -> None:
    assert node.version() == 1
    node.files.rename(node.path / "away")
    assert node.version() == 1
    (node.path / "away").rename(node.files)
    assert node.version() == 1


def test_each_version_is_a_row_that_names_its_origin(node: Node) -> None:
    node.version()
    node.version(engine="fake")
    rows = node.rows("models")

    assert [(r["name"], r["version"], r["engine"], r["origin"]) for r in rows] == [
        ("m", 1, "torch", "file"),
        ("m", 2, "fake", "file"),
    ]
    assert {r["node_id"] for r in rows} == {"node-1"}


def test_what_was_predicted_of_a_load_is_kept_beside_what_it_took(node: Node) -> None:
    node.registry.record(
        DeploymentChanged(
            model="m@1",
            state="ready",
            reason="start",
            utc_ns=7,
            predicted_bytes=640,
            measured_bytes=650,
        )
    )

    (row,) = node.rows("model_events")
    assert (row["predicted_bytes"], row["measured_bytes"]) == (640, 650)


def test_every_change_of_state_is_recorded_with_its_reason(node: Node) -> None:
    for state, reason, took_s, size in (
        ("loading", "request", None, None),
        ("ready", "request", 1.2345, 640),
        ("draining", "operator", None, None),
    ):
        node.registry.record(
            DeploymentChanged(
                model="m@1", state=state, reason=reason, utc_ns=7, took_s=took_s, bytes=size
            )
        )

    assert [
        (r["model"], r["state"], r["reason"], r["took_ms"], r["bytes"])
        for r in node.rows("model_events")
    ] == [
        ("m@1", "loading", "request", None, None),
        ("m@1", "ready", "request", 1234, 640),
        ("m@1", "draining", "operator", None, None),
    ]
