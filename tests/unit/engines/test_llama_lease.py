"""What a context has room for and what waits beside it are within the lease, together and after every step."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("llama_cpp", reason="needs the extra gguf")

from tests.unit.engines.gguf_models import write_random_llama
from tests.unit.engines.gguf_traffic import FACTS, SIZE, Traffic
from tests.unit.engines.toy_scheduler import Asked, ToyScheduler

from llmhost.engines.llama import runner as runner_module
from llmhost.engines.llama.context import KvLayout
from llmhost.engines.llama.load import load_runner
from llmhost.engines.llama.rooms import ROUNDED_CELLS, most_cells, most_tokens, with_spare
from llmhost.engines.llama.settings import LoadSettings

STEPS, WAVE = 150, 60
"""Callers come for so many steps, and none for as many."""


@given(st.integers(1, 10_000), st.integers(0, 10_000), st.integers(1, 1_000))
def test_beside_what_waits_there_is_room_for_all_that_does_not(
    blocks: int, waiting: int, token_bytes: int
) -> None:
    lease, waits = blocks * SIZE, min(waiting, blocks) * SIZE

    cells = most_cells(lease, waits)

    assert lease - waits <= cells and cells + waits <= most_tokens(lease)
    leased = blocks * with_spare(SIZE * token_bytes) + ROUNDED_CELLS * token_bytes
    assert most_tokens(lease) * token_bytes <= leased


@pytest.mark.parametrize(
    ("blocks", "callers", "kv_layout"),
    [(200, 12, "unified"), (150, 6, "auto"), (300, 12, "partitioned")],
)
def test_the_lease_is_kept_after_every_step_however_full_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, callers: int, kv_layout: KvLayout
) -> None:
    monkeypatch.setattr(runner_module, "LEAST_CELLS", 256)
    monkeypatch.setattr(runner_module, "SHRINK_EVERY", 40)
    settings = LoadSettings(
        batch_tokens=128, rows=12, threads=1, kv_type="f32", kv_layout=kv_layout
    )
    path = write_random_llama(tmp_path / "random.gguf", layers=1)
    runner, judge = (load_runner(path, settings, FACTS) for _ in range(2))
    runner.set_kv_blocks(blocks)
    traffic, most = Traffic(runner, blocks), most_tokens(blocks * SIZE)

    for step in range(STEPS):
        if step // WAVE % 2 == 0 and len(traffic.scheduler.ids()) < callers:
            traffic.arrive(step)
        traffic.step()
        assert runner.held_tokens <= most

    for seq_id in [one for one in traffic.ended if traffic.said[one]][-4:]:
        alone = Asked(traffic.prompts[seq_id], len(traffic.said[seq_id]))
        assert ToyScheduler(judge).answer(alone) == [traffic.said[seq_id]]
    runner.close()
    judge.close()


def test_a_lease_that_shrinks_while_nothing_runs_is_kept_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "LEAST_CELLS", 256)
    settings = LoadSettings(batch_tokens=128, rows=12, threads=1, kv_layout="partitioned")
    path = write_random_llama(tmp_path / "random.gguf", layers=1)
    runner = load_runner(path, settings, FACTS)
    runner.set_kv_blocks(300)
    traffic = Traffic(runner, 300)
    for step in range(120):
        if step < 60:
            traffic.arrive(step)
        traffic.step()

    for blocks in range(300, 100, -20):
        traffic.scheduler.resize_kv(blocks)
        runner.set_kv_blocks(blocks)
        assert runner.held_tokens <= most_tokens(blocks * SIZE)
    runner.close()
