import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import llmhost
from llmhost.core.errors import AlreadyRunning, ConfigError
from llmhost.storage.node import DataDir, read_server

HOLD = """
import sys
from pathlib import Path
from llmhost.storage.node import DataDir
data = DataDir(Path(sys.argv[1]))
data.acquire()
data.announce(url="http://127.0.0.1:8000", admin_token="t")
print("held", flush=True)
sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Another process that owns the directory until it is killed."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(llmhost.__file__).parents[1])},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "data"


def test_the_directory_is_made_for_its_owner_alone(path: Path) -> None:
    DataDir(path)
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/data can't be made.*--data-dir"):
        DataDir(tmp_path / "file" / "data")


def test_databases_lie_in_the_directory(path: Path) -> None:
    data = DataDir(path)
    names = [p.name for p in (data.money_db, data.analytics_db, data.registry_db)]
    assert names == ["money.db", "analytics.db", "registry.db"]
    assert {p.parent for p in (data.money_db, data.analytics_db, data.registry_db)} == {path}


def test_node_id_and_pepper_are_made_once_and_kept_secret(path: Path) -> None:
    first, second = DataDir(path), DataDir(path)
    assert first.node_id == second.node_id
    assert first.node_id.startswith("node-")
    assert first.pepper == second.pepper
    assert len(first.pepper) == 32
    assert (path / "pepper").stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in path.iterdir()) == ["node_id", "pepper"]


def test_two_directories_have_different_names_and_peppers(tmp_path: Path) -> None:
    a, b = DataDir(tmp_path / "a"), DataDir(tmp_path / "b")
    assert a.node_id != b.node_id
    assert a.pepper != b.pepper


def test_a_second_owner_is_refused_until_the_first_lets_go(path: Path) -> None:
    with DataDir(path), pytest.raises(AlreadyRunning, match=f"process {os.getpid()} "):
        DataDir(path).acquire()
    with DataDir(path):
        pass


def test_the_refusal_names_process_command_and_address_of_the_holder(path: Path) -> None:
    with hold(path) as child:
        with pytest.raises(AlreadyRunning) as refused:
            DataDir(path).acquire()
        child.kill()
    assert f"process {child.pid} (" in refused.value.message
    assert sys.executable in refused.value.message
    assert "at http://127.0.0.1:8000" in refused.value.message
    assert "--data-dir" in refused.value.message


def test_a_killed_owner_leaves_neither_a_lock_nor_a_server(path: Path) -> None:
    with hold(path) as child:
        found = read_server(path)
        assert found is not None
        assert (found.url, found.pid, found.admin_token) == (
            "http://127.0.0.1:8000",
            child.pid,
            "t",
        )
        child.send_signal(signal.SIGKILL)
        child.wait(10)
    assert (path / "server.json").exists()
    assert read_server(path) is None
    with DataDir(path):
        pass


def test_the_announcement_is_private_complete_and_withdrawn(path: Path) -> None:
    with DataDir(path) as data:
        data.announce(url="http://127.0.0.1:1", admin_token="secret")
        data.announce(url="http://127.0.0.1:2", admin_token="secret")
        file = path / "server.json"
        assert file.stat().st_mode & 0o777 == 0o600
        assert json.loads(file.read_text()).keys() == {"url", "pid", "started_s", "admin_token"}
        found = read_server(path)
        assert found is not None
        assert found.url == "http://127.0.0.1:2"
    assert not file.exists()
    assert read_server(path) is None
    assert sorted(p.name for p in path.iterdir()) == ["lock"]


def test_a_pid_that_was_given_to_another_process_is_not_the_server(path: Path) -> None:
    DataDir(path)
    stale = {"pid": os.getpid(), "started_s": 1.0, "url": "http://x", "admin_token": "t"}
    (path / "server.json").write_text(json.dumps(stale))
    assert read_server(path) is None


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff", b'{"pid": "x"}'])
def test_a_damaged_announcement_counts_as_none(path: Path, content: bytes) -> None:
    DataDir(path)
    (path / "server.json").write_bytes(content)
    assert read_server(path) is None


def test_only_the_owner_may_announce(path: Path) -> None:
    with pytest.raises(RuntimeError, match="not locked"):
        DataDir(path).announce(url="http://x", admin_token="t")
