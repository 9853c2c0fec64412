"""A backup that is not what it was is not restored, and nothing is left where it would have been."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from llmhost.core.errors import AlreadyRunning, ConfigError, Conflict, InvalidValue, LlmhostError
from llmhost.host.backup import back_up, restore, told
from llmhost.storage.backup import note_of
from llmhost.storage.node import DataDir
from llmhost.testing import at, make_host

NOW = "2026-01-10T12:00Z"


def quiet(*_: object) -> None:
    pass


@pytest.fixture
async def made(tmp_path: Path) -> Path:
    """A backup of a node that runs and has answered."""
    data_dir, target = tmp_path / "data", tmp_path / "backup"
    async with make_host(data_dir=data_dir, clock=at(NOW)) as host:
        await host.say("hello", max_tokens=3)
        await host.make_key("acme")
        back_up(host.host.data_dir, target, at(NOW), quiet)
    return target


def test_a_backup_says_what_it_is(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["created_at"] == "2026-01-10T12:00:00Z"
    assert manifest["entries"] == 1
    assert manifest["node_id"] == (made / "node_id").read_text()
    assert {"money.db", "analytics.db", "registry.db"} < set(manifest["files"])
    assert {"node_id", "pepper", "statement_key"} < set(manifest["files"])
    assert manifest["files"]["pepper"]["sha256"] == note_of(made / "pepper").sha256
    assert {file.stat().st_mode & 0o777 for file in made.rglob("*") if file.is_file()} <= {
        0o600,
        0o644,
    }
    assert (made / "files").stat().st_mode & 0o777 == 0o700
    assert (made / "pepper").stat().st_mode & 0o777 == 0o600


async def test_what_was_backed_up_is_restored_and_goes_on(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "again"
    manifest = restore(made, target, quiet)
    assert manifest.entries == 1
    assert target.stat().st_mode & 0o777 == 0o700
    async with make_host(data_dir=target, clock=at(NOW)) as host:
        assert host.host.books.keys.has_keys
        assert host.host.books.ledger.audit().chain.rows == 1
        assert [row["seq"] for row in host.entries()] == [1]


def forge(made: Path, statement: str) -> None:
    """Change the ledger, and the manifest with it."""
    with closing(sqlite3.connect(made / "money.db")) as file:
        for verb in ("UPDATE", "DELETE"):
            file.execute(f"DROP TRIGGER entries_no_{verb}")
        file.execute(statement)
        file.commit()
    manifest = json.loads((made / "manifest.json").read_text())
    note = note_of(made / "money.db")
    manifest["files"]["money.db"] = {"bytes": note.bytes, "sha256": note.sha256}
    (made / "manifest.json").write_text(json.dumps(manifest))


def flip(made: Path, name: str) -> None:
    content = bytearray((made / name).read_bytes())
    content[len(content) // 2] ^= 1
    (made / name).write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda made: flip(made, "money.db"), "its hash is another one"),
        (lambda made: flip(made, "pepper"), "its hash is another one"),
        (lambda made: (made / "analytics.db").unlink(), "could not be used"),
        (lambda made: forge(made, "UPDATE entries SET amount_nano = 1"), "is damaged: entry 1"),
        (
            lambda made: forge(made, "DELETE FROM entries"),
            "not what the entries add up to|does not end",
        ),
    ],
)
def test_a_backup_that_was_changed_is_not_restored(
    made: Path, tmp_path: Path, harm: Callable[[Path], None], said: str
) -> None:
    harm(made)
    with pytest.raises(LlmhostError, match=said):
        restore(made, tmp_path / "again", quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "data"]


def test_nothing_is_restored_over_anything(made: Path, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="not empty"):
        restore(made, tmp_path / "data", quiet)
    with DataDir(tmp_path / "running") as running:
        running.announce(url="http://127.0.0.1:1", admin_token="x")
        with pytest.raises(AlreadyRunning, match="Stop it"):
            restore(made, tmp_path / "running", quiet)
    with pytest.raises(ConfigError, match="is no backup"):
        restore(tmp_path / "data", tmp_path / "again", quiet)


def test_a_place_that_can_not_be_is_refused(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path / "data")
    for path in ("relative", tmp_path / "data" / "inside", tmp_path / "no" / "such"):
        with pytest.raises(InvalidValue):
            back_up(data_dir, Path(path), at(NOW), quiet)


def test_what_an_act_raises_is_raised_where_it_is_followed() -> None:
    def fail(tell: Callable[[str, int, int], None]) -> None:
        tell("a", 1, 2)
        raise Conflict("no")

    rows = told(fail)  # type: ignore[arg-type]
    assert next(rows) == {"file": "a", "bytes": 1, "of": 2}
    with pytest.raises(Conflict):
        next(rows)
