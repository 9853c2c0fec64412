"""Saved keys and values in parts: what is taken apart and put together is what llama.cpp saved, to the byte."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
from tests.unit.engines.gguf_models import write_random_llama
from tests.unit.engines.llama.library_calls import opened

from llmhost.core.errors import EngineFailed
from llmhost.engines.llama.context import Context, NoRoom, Room
from llmhost.engines.llama.settings import KvType, LoadSettings, shape_of
from llmhost.engines.llama.states import joined, read_state

COUNT = 90


@contextmanager
def contexts(path: Path, kv_type: KvType) -> Iterator[tuple[Context, Context]]:
    """With one buffer, and with one for each sequence."""
    settings = LoadSettings(batch_tokens=128, rows=4, threads=1, kv_type=kv_type)
    with opened(path) as (library, model):
        shape = shape_of(library, settings)
        together, apart = (
            Context(library, model, shape, room) for room in (Room(512), Room(256, 4))
        )
        try:
            yield together, apart
        finally:
            together.close()
            apart.close()


def feed(context: Context, sequence: int, start: int, count: int) -> None:
    tokens = [(7 * position) % 150 for position in range(start, start + count)]
    positions = range(start, start + count)
    context.decode(context.batch.fill(tokens, positions, [sequence] * count, [0] * count))


def same(one: bytes, other: bytes) -> bool:
    """Whatever the sequence was called."""
    first, second = read_state(one), read_state(other)
    are_alike = first.layers == second.layers and len(first.positions) > 0
    equal = np.array_equal(first.positions, second.positions)
    return are_alike and equal and np.array_equal(first.cells, second.cells)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llama(tmp_path_factory.mktemp("gguf") / "random.gguf", width=128)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of images as well, of whose cells more is saved."""
    folder = tmp_path_factory.mktemp("seeing")
    return write_random_llama(folder / "random.gguf", width=128, sections=[8, 8, 0, 0])


@pytest.mark.parametrize(
    ("model", "kv_type"), [("path", "f16"), ("path", "f32"), ("path", "q8_0"), ("seeing", "f16")]
)
def test_parts_of_a_state_make_up_the_whole_in_buffers_of_both_kinds(
    request: pytest.FixtureRequest, model: str, kv_type: KvType
) -> None:
    with contexts(request.getfixturevalue(model), kv_type) as (together, apart):
        for context in (together, apart):
            feed(context, 2, 0, COUNT)
        whole = together.read(2, 0, 999)
        parts = [apart.read(2, start, start + 16) for start in range(0, COUNT, 16)]

        assert same(whole, read_state(whole).written())
        assert len(read_state(whole).written()) == len(whole)
        assert same(whole, joined([*map(read_state, parts)]).written())
        apart.restore(0, parts)
        together.restore(5, parts)

        assert same(whole, apart.read(0, 0, 999))
        assert same(whole, together.read(5, 0, 999))
        feed(apart, 0, COUNT, 4)
        feed(apart, 2, COUNT, 4)
        assert same(apart.read(0, 0, 999), apart.read(2, 0, 999))


def test_what_has_no_room_leaves_an_empty_sequence(path: Path) -> None:
    with contexts(path, "f16") as (together, apart):
        for at in range(3):
            feed(together, 2, 100 * at, 100)

        with pytest.raises(NoRoom):
            apart.restore(1, [together.read(2, 0, 300)])

        assert len(read_state(apart.read(1, 0, 300)).positions) == 0
        feed(apart, 1, 0, 10)


def test_a_state_of_another_layout_is_refused(path: Path) -> None:
    with contexts(path, "f16") as (together, _):
        feed(together, 2, 0, 10)
        saved = together.read(2, 0, 10)

    for broken in (saved[:-1], saved + b"\0", saved[:20] + bytes([7]) + saved[21:]):
        with pytest.raises(EngineFailed, match="layout"):
            read_state(broken)
