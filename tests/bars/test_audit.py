"""Ten thousand rows of an audit log, and one change to them from outside: it is found, and its place named."""

import random
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

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
def test_one_change_in_ten_thousand_rows_is_found(
    whole: Path, tmp_path: Path, bar: Callable[[str], None], how: Any
) -> None:
    missed = []
    for seed in range(TRIES):
        seq = random.Random(seed).randrange(1, ROWS)
        folder = copy_of(whole, tmp_path / str(seed))
        tamper(folder, seq, how, seed)
        with closing(open_trail(folder)) as trail:
            broken = trail.verify().broken
        missed += [] if broken is not None and broken.seq == seq else [seq]
        shutil.rmtree(folder)
    what = how.__name__.replace("_", " ")
    bar(f"audit log of {ROWS} rows, {what} {TRIES} times: {len(missed)} not found, or elsewhere")
    assert missed == []


@pytest.mark.parametrize("count", [1, 2, 999, ROWS - 1, ROWS])
def test_a_tail_that_was_cut_off_is_found(whole: Path, tmp_path: Path, count: int):
    folder = copy_of(whole, tmp_path)
    cut(folder, count)

    with closing(open_trail(folder)) as trail:
        broken = trail.verify().broken
    assert broken.seq == ROWS - count + 1
    assert str(ROWS) in broken.reason


def test_a_bit_that_turns_anywhere_in_the_file_changes_no_row_unnoticed(
    whole: Path, tmp_path: Path, bar: Callable[[str], None]
) -> None:
    """Some of a file's bits mean nothing: then all rows are what they were."""
    content = (whole / "audit.db").read_bytes()
    found = 0
    for seed in range(TRIES):
        folder = copy_of(whole, tmp_path / str(seed))
        turned = bytearray(content)
        turned[random.Random(seed).randrange(100, len(content))] ^= 1 << seed % 8
        (folder / "audit.db").write_bytes(turned)
        with closing(open_trail(folder)) as trail:
            verdict = trail.verify()
        found += verdict.broken is not None
        assert verdict.broken is not None or verdict.rows == ROWS
        shutil.rmtree(folder)
    bar(
        f"audit log, a bit anywhere in the file {TRIES} times: {found} found, the others change no row"
    )
