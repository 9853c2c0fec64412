"""What lies on disk can't run code, can't be swapped, and can't stop the node."""

import os
import pickle
import stat
from pathlib import Path
from typing import Any

import diskcache
import pytest
from tests.unit.cache.kept import HOUR_S, KEYS, key

from llmhost.cache.disk import BytesOnly, Disk, RefusedPickle
from llmhost.core.errors import ConfigError


class Trap:
    """A pickle of it makes a file as soon as it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "cache", KEYS, 2**24)


def keep(disk: Disk, name: str, value: bytes = b"value", tag: str | None = None) -> None:
    disk.put(name, value, expires_s=HOUR_S, tag=tag)


def test_what_is_put_is_there_for_another_process_too(disk: Disk, tmp_path: Path):
    keep(disk, "a")
    disk.close()

    assert Disk(tmp_path / "cache", KEYS, 2**24).get("a") == b"value"


def test_the_folder_is_for_this_user_alone(disk: Disk, tmp_path: Path):
    keep(disk, "a")
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700

    (tmp_path / "cache").chmod(0o755)
    Disk(tmp_path / "cache", KEYS, 2**24)

    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ConfigError, match="link"):
        Disk(tmp_path / "cache", KEYS, 2**24)


def test_a_planted_pickle_is_never_loaded(disk: Disk, tmp_path: Path):
    trap = tmp_path / "trapped"
    keep(disk, "a")
    disk.close()
    with diskcache.Cache(str(tmp_path / "cache")) as planted:  # as anybody would write it
        planted["a"] = Trap(trap)
        planted["big"] = [Trap(trap), b"x" * 100_000]  # goes to a file of its own
        planted[(1, "b")] = b"a key that is a pickle"

    again = Disk(tmp_path / "cache", KEYS, 2**24)

    assert again.get("a") is None and again.get("big") is None
    assert again.drop_keys(lambda name: True) == 0  # it met the key that is no text, and began anew
    assert not trap.exists()
    keep(again, "a")
    assert again.get("a") == b"value"


def test_a_file_outside_that_a_row_names_is_not_read(disk: Disk, tmp_path: Path):
    (tmp_path / "secret").write_bytes(b"secret")
    keep(disk, "a")
    cache = disk._cache
    cache._sql("UPDATE Cache SET mode = 2, filename = '../secret', value = NULL")

    assert disk.get("a") is None
    assert disk.refused == 1


def test_neither_side_of_the_adapter_takes_what_is_no_text_or_bytes(tmp_path: Path):
    adapter = BytesOnly(str(tmp_path))

    with pytest.raises(RefusedPickle):
        adapter.put(("a", 1))
    with pytest.raises(RefusedPickle):
        adapter.store({"a": 1}, False)
    with pytest.raises(RefusedPickle):
        adapter.fetch(4, None, pickle.dumps(1), False)
    with pytest.raises(RefusedPickle):
        adapter.get(pickle.dumps(1), False)


def test_an_answer_that_was_moved_to_another_key_is_none(disk: Disk):
    keep(disk, "mine")
    disk._cache._sql("UPDATE Cache SET key = 'theirs'")

    assert disk.get("theirs") is None
    assert disk.refused == 1


@pytest.mark.parametrize("damage", [b"", b"not a database" * 1000], ids=["empty", "garbage"])
def test_a_damaged_store_is_made_anew(disk: Disk, tmp_path: Path, damage: bytes):
    keep(disk, "a")
    disk.close()
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(damage)

    again = Disk(tmp_path / "cache", KEYS, 2**24)
    assert again.get("a") is None
    keep(again, "b")

    assert again.get("b") == b"value"
    assert not again.is_broken


def test_a_page_that_rots_while_it_is_open_is_thrown_away(disk: Disk, tmp_path: Path):
    for number in range(200):
        keep(disk, str(number), os.urandom(2_000))
    disk._cache._sql("PRAGMA wal_checkpoint(TRUNCATE)")
    with (tmp_path / "cache" / "cache.db").open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(300_000))
    disk.close()

    for number in range(200):
        disk.get(str(number))
        keep(disk, str(number))

    assert disk.get("7") == b"value"
    assert not disk.is_broken


def test_a_store_that_is_damaged_again_and_again_is_given_up(disk: Disk):
    def broken(cache: Any) -> int:
        raise OSError("input/output error")

    for _ in range(3):
        assert disk._guarded(broken, 7) == 7

    assert disk.is_broken
    assert disk.get("a") is None


def test_the_oldest_make_room(tmp_path: Path):
    disk = Disk(tmp_path / "cache", KEYS, 2**20)
    for number in range(60):
        keep(disk, str(number), os.urandom(50_000))

    answers, _ = disk.size()
    assert answers < 60
    assert disk.get("59") is not None
    assert disk.get("0") is None


def test_answers_are_forgotten_by_tag_and_by_key(disk: Disk):
    keep(disk, key(org="a"), tag="one")
    keep(disk, key(org="b"))
    keep(disk, key(org="c"))

    assert disk.drop_tag("one") == 1
    assert disk.drop_keys(lambda name: f".{KEYS.mark_of_org('b')}." in name) == 1
    assert disk.size()[0] == 1
    assert disk.clear() == 1
