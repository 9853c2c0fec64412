"""One buffer for all or one for each: whatever runs, what is chosen has room for it and stays within the lease."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llmhost.core.sampling import Sampling
from llmhost.core.step import Row
from llmhost.engines.llama.context import ContextShape, Room
from llmhost.engines.llama.rooms import apart_for, longest_of, rooms_of, suits

SHAPE = ContextShape(
    batch_tokens=512,
    sequences=144,
    rows=32,
    outputs=144,
    threads=1,
    kv_type=1,
    flash_attention=0,
    offloads_kv=False,
)
SIZE = 16


def row(seq_id: int, start: int, count: int, shared_blocks: int = 0) -> Row:
    blocks = -(-(start + count) // SIZE)
    own = range(1000 * (seq_id + 1), 1000 * (seq_id + 1) + blocks)
    table = [*range(min(shared_blocks, blocks)), *own][:blocks]
    return Row(seq_id, [1] * count, start, table, Sampling(), 0, True)


@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 300)), min_size=1, max_size=40),
    st.integers(0, 100_000),
    st.sampled_from(["auto", "unified", "partitioned"]),
    st.integers(1, 255),
)
def test_buffers_hold_what_runs_within_half_of_the_lease(
    parts: list[tuple[int, int]], lease_tokens: int, layout: str, most_rows: int
) -> None:
    rows = [row(at, *part) for at, part in enumerate(parts[:most_rows])]
    shape = replace(SHAPE, layout=layout, rows=most_rows)

    room = apart_for(rows, shape, lease_tokens)

    if room is not None:
        assert suits(room, rows, shape)
        assert longest_of(rows) <= room.cells
        assert room.cells % 256 == 0
        assert len(rows) <= room.buffers <= most_rows
        assert 2 * room.tokens <= lease_tokens
        assert layout != "unified"


def test_many_short_texts_have_buffers_of_their_own_and_few_or_common_ones_do_not() -> None:
    many = [row(at, 0, 40) for at in range(32)]

    assert apart_for(many, SHAPE, 32 * 1024) == Room(512, 32)
    assert apart_for(many[:4], SHAPE, 32 * 1024) is None
    assert apart_for(many, SHAPE, 4096) is None, "too little memory"
    assert apart_for([row(at, 480, 20, 30) for at in range(32)], SHAPE, 32 * 1024) is None
    assert apart_for(many, replace(SHAPE, offloads_kv=True), 32 * 1024) is None


def test_what_was_told_to_be_apart_is_so_from_the_first_row_on() -> None:
    told = replace(SHAPE, layout="partitioned", offloads_kv=True)

    assert apart_for([row(1, 480, 20, 30)], told, 32 * 1024) == Room(1280 - 256, 8)


def test_buffers_are_left_when_a_text_outgrows_them_or_much_is_shared() -> None:
    room = Room(512, 8)

    assert suits(room, [row(at, 511, 1) for at in range(8)], SHAPE)
    assert not suits(room, [row(1, 512, 1)], SHAPE)
    assert not suits(room, [row(at, 0, 1) for at in range(9)], SHAPE)
    assert not suits(room, [row(at, 480, 20, 30) for at in range(8)], SHAPE)


def test_the_largest_room_of_each_kind_is_known_before_a_load() -> None:
    assert rooms_of(SHAPE, 32 * 1024) == [Room(32 * 1024), Room(512, 32)]
    assert rooms_of(replace(SHAPE, layout="unified"), 32 * 1024) == [Room(32 * 1024)]
    assert rooms_of(SHAPE, 4096) == [Room(4096)]
