"""Bytes of files in tensors: every byte once, whole elements, whatever the slabs' size."""

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmhost.engines.torch import file_reader
from llmhost.engines.torch.file_reader import Read, cut, read_all

CPU = torch.device("cpu")


def write(path: Path, count: int) -> bytes:
    content = bytes(place * 7 % 251 for place in range(count))
    path.write_bytes(content)
    return content


def room(count: int, kind: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.zeros(count, dtype=kind)


def test_what_was_read_is_what_the_file_has(tmp_path: Path):
    content = write(tmp_path / "one", 1000)
    first, second = room(300), room(650)

    reads = [
        Read(tmp_path / "one", 350, 650, torch.uint8, second),
        Read(tmp_path / "one", 7, 300, torch.uint8, first),
    ]
    read_all(reads, device=CPU, slab_bytes=64, readers=3)

    assert bytes(first.tolist()) == content[7:307]
    assert bytes(second.tolist()) == content[350:]


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16])
def test_elements_of_another_type_are_converted(
    stored: torch.dtype, wanted: torch.dtype, tmp_path: Path
):
    values = torch.randn(1001, generator=torch.Generator().manual_seed(1)).to(stored)
    path = tmp_path / "weights"
    path.write_bytes(b"odd" + values.view(torch.uint8).numpy().tobytes())
    target = torch.zeros(7, 143, dtype=wanted)

    read_all([Read(path, 3, values.nbytes, stored, target)], device=CPU, slab_bytes=100)

    assert target.flatten().equal(values.to(wanted))


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 12)), max_size=12),
    st.integers(1, 12),
)
def test_slabs_hold_every_byte_once_and_whole_elements(tensors: list[tuple[int, int]], most: int):
    reads, place = [], 0
    for gap, count in tensors:
        place += gap % 3
        size = count * 4
        reads.append(Read(Path("f"), place, size, torch.float32, room(count, torch.float32)))
        place += size

    slabs = list(cut(reads, most * 4))

    assert all(slab.size <= most * 4 for slab in slabs)
    for slab in slabs:
        assert [part.at for part in slab.parts] == [
            sum(part.size for part in slab.parts[:i]) for i in range(len(slab.parts))
        ]
        assert all(slab.offset + part.at == part.read.offset + part.first for part in slab.parts)
    for read in reads:
        parts = sorted(p[2:] for slab in slabs for p in slab.parts if p.read is read)
        assert sum(size for _, size in parts) == read.size
        assert all(first % 4 == 0 and size % 4 == 0 for first, size in parts)


def test_a_file_that_ends_too_early_is_an_error(tmp_path: Path):
    write(tmp_path / "short", 100)
    with pytest.raises(OSError, match="ends before its last tensor"):
        read_all([Read(tmp_path / "short", 0, 200, torch.uint8, room(200))], device=CPU)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        read_all([Read(tmp_path / "none", 0, 1, torch.uint8, room(1))], device=CPU)


def test_a_long_read_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    write(tmp_path / "one", 4_000)
    monkeypatch.setattr(file_reader, "PROGRESS_S", 0.0)
    caplog.set_level(logging.INFO, "llmhost")

    read_all([Read(tmp_path / "one", 0, 4_000, torch.uint8, room(4_000))], device=CPU, slab_bytes=2)

    facts = [record.facts for record in caplog.records if record.message == "weights.reading"]
    assert facts
    assert set(facts[0]) == {"gib", "of_gib", "gib_per_s"}
