"""Ten thousand rows of an audit log, and one change to them from outside: it is found, and its place named."""

import random
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from tests.unit.storage.damage import cut, delete, fill, flip_a_bit, open_trail, swap, tamper

pytestmark = pytest.mark.bars

ROWS = 10_000
TRIES = 12


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with closing(open_trail(folder)) as trail:
        fill(trail, random.Random(7), ROWS)
        verdict = trail.verify()
    assert (verdict.rows, verdict.broken) == (ROWS, None)
    return folder


def copy_of(whole: Path, folder: Path) -> Path:
    return Path(shutil.copytree(whole, folder / "copy"))


@pytest.mark.parametrize("how", [flip_a_bit, delete, swap])
@pytest.mark.parametrize("seed", range(TRIES))
def test_one_change_in_ten_thousand_rows_is_found(whole: Path, tmp_path: Path, how, seed: int):
    seq = random.Random(seed).randrange(1, ROWS)
    folder = copy_of(whole, tmp_path)
    tamper(folder, seq, how, seed)

    with closing(open_trail(folder)) as trail:
        assert trail.verify().broken.seq == seq


@pytest.mark.parametrize("count", [1, 2, 999, ROWS - 1, ROWS])
def test_a_tail_that_was_cut_off_is_found(whole: Path, tmp_path: Path, count: int):
    folder = copy_of(whole, tmp_path)
    cut(folder, count)

    with closing(open_trail(folder)) as trail:
        broken = trail.verify().broken
    assert broken.seq == ROWS - count + 1
    assert str(ROWS) in broken.reason


@pytest.mark.parametrize("seed", range(TRIES))
def test_a_bit_that_turns_anywhere_in_the_file_changes_no_row_unnoticed(
    whole: Path, tmp_path: Path, seed: int
):
    """Some of a file's bits mean nothing: then all rows are what they were."""
    folder = copy_of(whole, tmp_path)
    content = bytearray((folder / "audit.db").read_bytes())
    content[random.Random(seed).randrange(100, len(content))] ^= 1 << seed % 8
    (folder / "audit.db").write_bytes(content)

    with closing(open_trail(folder)) as trail:
        verdict = trail.verify()
    assert verdict.broken is not None or verdict.rows == ROWS
