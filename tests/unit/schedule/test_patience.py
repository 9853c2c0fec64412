"""How long those who write wait for prompts: by a machine whose steps take what was once measured of a real one."""

import random
import statistics
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.schedule.kit import SpelledWatch, a_spec, some_limits

from llmhost.core.step import Row, StepResult, split_exactly, work_units
from llmhost.schedule.patience import FEW_AT_ONCE, even_chunk
from llmhost.schedule.scheduler import Scheduler

STREAMS, LATE_TOKENS = 8, 4000


def takes_ms(rows: list[Row], at_once: int) -> float:
    """As 6 layers of 1,024 on two threads: products that read the weights once for so many tokens, and attention."""
    fed = sum(len(row.tokens) for row in rows)
    ms = 29 + 0.72 * fed + 9 * ((fed - 1) // at_once)
    for row in rows:
        tokens, past = len(row.tokens), row.start / 1024
        ms += 0.3 + 3.5 * past if tokens == 1 else 4 + past * (5 + 0.35 * tokens)
    return ms


class Machine:
    """A scheduler whose steps take a while and draw the token 1; no two take quite the same."""

    def __init__(self, at_once: int) -> None:
        limits = some_limits(
            max_batch_size=64,
            max_tokens_per_batch=1024,
            max_sequence_length=8192,
            kv_blocks=5000,
            rows_at_once=at_once,
        )
        self.scheduler = Scheduler(limits)
        self._at_once = at_once
        self._ids, self._noise = count(1), random.Random(3)

    def add(self, tokens: int, new_tokens: int) -> int:
        seq_id = next(self._ids)
        prompt = self._noise.choices(range(2, 30_000), k=tokens)
        spec = a_spec(prompt, max_new_tokens=new_tokens, arrival_ns=seq_id)
        self.scheduler.add(seq_id, spec, SpelledWatch())
        return seq_id

    def step(self) -> tuple[float, set[int]]:
        """What it took, and who said something."""
        rows = self.scheduler.plan()
        ms = takes_ms(rows, self._at_once) * self._noise.gauss(1, 0.05)
        ns, drawn = int(1e6 * ms), [1 if row.wants_token else None for row in rows]
        shares = split_exactly(ns, [work_units(row) for row in rows])
        said = self.scheduler.absorb(StepResult(rows, drawn, 0, ns, shares))
        return ms, {seq_id for seq_id, _ in said}


def test_a_long_prompt_makes_hardly_any_step_of_those_who_write_two_and_a_half_times_as_long() -> (
    None
):
    machine = Machine(at_once=14)
    streams = {machine.add(128, 3000) for _ in range(STREAMS)}
    said: set[int] = set()
    while said != streams:
        said |= machine.step()[1]
    alone_ms = statistics.median(machine.step()[0] for _ in range(12))

    late, busy, heard = machine.add(LATE_TOKENS, 2), [], set[int]()
    while late not in heard:
        ms, heard = machine.step()
        busy.append(ms)

    assert sorted(busy)[int(0.99 * len(busy))] <= 2.5 * alone_ms
    assert len(busy) < LATE_TOKENS / 5


@given(st.integers(1, 200), st.integers(1, 64), st.integers(2, 32))
def test_a_chunk_is_cut_by_less_than_half_to_fill_what_is_computed_at_once(
    room: int, decoders: int, at_once: int
) -> None:
    chunk = even_chunk(room, decoders, some_limits(rows_at_once=at_once))
    assert room / 2 < chunk <= room
    if chunk < room < FEW_AT_ONCE * at_once:
        assert (decoders + chunk) % at_once == 0 or chunk % some_limits().block_tokens == 0


@pytest.mark.parametrize(
    ("room", "decoders", "chunk"), [(8, 8, 6), (6, 8, 6), (11, 8, 6), (16, 8, 16), (21, 8, 20)]
)
def test_eight_who_write_and_what_fits_beside_them_are_computed_at_once(
    room: int, decoders: int, chunk: int
) -> None:
    assert even_chunk(room, decoders, some_limits(rows_at_once=14)) == chunk
