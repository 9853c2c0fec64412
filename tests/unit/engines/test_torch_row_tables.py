"""What the host keeps of decoding sequences: every step is packed as if it were the first."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmhost.core.sampling import Sampling
from llmhost.core.step import PENDING, Row
from llmhost.engines.drawing import Place
from llmhost.engines.torch.asked import DrawAsked, pack
from llmhost.engines.torch.row_tables import ASKED_WORDS, COLUMNS, RowTables

SIZE = 4
SAMPLINGS = (
    Sampling(temperature=0.0),
    Sampling(temperature=0.7, top_p=0.9),
    Sampling(top_k=5, min_p=0.1),
)


def a_row(seq_id: int, start: int, blocks: list[int], token: int = 3) -> Row:
    sampling = SAMPLINGS[seq_id % 3]
    return Row(seq_id, [token], start, blocks, sampling, seed=seq_id * 2**40 - 7, wants_token=True)


def columns(words: torch.Tensor, width: int) -> torch.Tensor:
    return words[ASKED_WORDS * width :].view(COLUMNS, width)


def check(tables: RowTables, rows: list[Row], width: int) -> None:
    lines = tables.lines(rows)
    words = tables.pack(rows, lines, width, before={})
    ids, places, positions, ends, slots = columns(words, width)
    count = len(rows)
    assert ids[:count].tolist() == [row.tokens[0] for row in rows]
    assert places.tolist() == [-1] * width
    assert positions[:count].tolist() == [row.start for row in rows]
    assert ends.tolist() == [row.start + 1 for row in rows] + [0] * (width - count)
    expected = [row.blocks[row.start // SIZE] * SIZE + row.start % SIZE for row in rows]
    assert slots.tolist() == expected + [-1] * (width - count)
    asked = DrawAsked.of(words[: ASKED_WORDS * width].view(torch.int64))
    assert torch.equal(
        asked.packed[: 2 * width], pack([Place(r) for r in rows], width)[: 2 * width]
    )
    assert torch.equal(asked.packed, pack([Place(r) for r in rows], width))
    found = tables.tables(lines, tables.columns(rows))
    for row, table in zip(rows, found, strict=True):
        used = row.start // SIZE + 1
        assert table[:used].tolist() == list(row.blocks[:used])


@given(st.data())
def test_a_step_is_packed_as_its_rows_are_whatever_came_before(data: st.DataObject) -> None:
    tables = RowTables(SIZE)
    live: dict[int, tuple[int, list[int]]] = {}
    numbers = iter(range(1, 10_000))
    fresh = iter(range(1, 10_000))
    for _ in range(data.draw(st.integers(1, 8))):
        for seq_id in data.draw(st.sets(st.sampled_from([*live, 0]), max_size=3)):
            live.pop(seq_id, None)
        for _ in range(data.draw(st.integers(0, 4))):
            start = data.draw(st.integers(0, 700))
            live[next(numbers)] = (start, [next(fresh) for _ in range(start // SIZE + 1)])
        rows = []
        for seq_id, (start, blocks) in live.items():
            if data.draw(st.booleans()) and blocks:
                blocks[data.draw(st.integers(0, len(blocks) - 1))] = next(fresh)
            start += data.draw(st.integers(0, 9))
            while len(blocks) <= start // SIZE:
                blocks.append(next(fresh))
            live[seq_id] = (start, blocks)
            rows.append(a_row(seq_id, start, blocks))
        if rows:
            check(tables, rows, data.draw(st.integers(len(rows), len(rows) + 3)))


def test_a_token_that_is_not_known_yet_is_fed_from_its_place() -> None:
    tables = RowTables(SIZE)
    rows = [a_row(1, 5, [8, 9]), a_row(2, 2, [7], PENDING)]
    words = tables.pack(rows, tables.lines(rows), 2, before={2: 6, 1: 4})
    ids, places, *_ = columns(words, 2)

    assert (ids.tolist(), places.tolist()) == ([3, 0], [-1, 6])


def test_lines_of_sequences_that_are_gone_are_given_away() -> None:
    tables = RowTables(SIZE)
    for seq_id in range(1000):
        lines = tables.lines([a_row(seq_id, 0, [seq_id])])
    assert int(lines[0]) < 128


def test_the_same_tables_are_not_sent_twice() -> None:
    tables = RowTables(SIZE)
    blocks = [1, 2]
    tables.lines([a_row(1, 5, blocks)])
    before = tables.version
    tables.lines([a_row(1, 6, blocks)])
    assert tables.version == before
    blocks[0] = 9
    tables.lines([a_row(1, 7, blocks)])
    assert tables.version != before


def test_an_id_that_comes_again_with_other_wishes_is_another_sequence() -> None:
    tables = RowTables(SIZE)
    first, second = a_row(1, 0, [4]), a_row(1, 0, [4])._replace(sampling=SAMPLINGS[2], seed=9)
    tables.lines([first])
    words = tables.pack([second], tables.lines([second]), 1, before={})
    asked = DrawAsked.of(words[:ASKED_WORDS].view(torch.int64))

    assert np.isclose(float(asked.min_p[0]), 0.1)
    assert int(asked.seed[0]) == 9
