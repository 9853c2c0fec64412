"""Random traffic through the GGUF engine with too little of everything: no wrong answer, no hang, no leak."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytest.importorskip("llama_cpp", reason="needs the extra gguf")

from tests.unit.engines.gguf_models import write_random_llama
from tests.unit.engines.gguf_traffic import FACTS, SIZE, Traffic
from tests.unit.engines.llama.windowed import save_checkpoint, write_gguf
from tests.unit.engines.toy_scheduler import Asked, ToyScheduler

from llmhost.engines.llama import runner as runner_module
from llmhost.engines.llama.context import KvLayout
from llmhost.engines.llama.load import load_runner
from llmhost.engines.llama.rooms import most_tokens
from llmhost.engines.llama.settings import LoadSettings

pytestmark = pytest.mark.bars
STEPS, SETTLED = 3_000, 1_500


@pytest.mark.parametrize(
    ("blocks", "kv_layout", "has_window"),
    [
        (80, "unified", False),
        (700, "auto", False),
        (700, "partitioned", False),
        (80, "unified", True),
    ],
)
def test_random_traffic_over_a_full_cache(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    blocks: int,
    kv_layout: KvLayout,
    has_window: bool,
    bar: Callable[[str], None],
) -> None:
    """With little memory for one buffer, for buffers that are made and left, and for those of all."""
    monkeypatch.setattr(runner_module, "LEAST_CELLS", 256)
    monkeypatch.setattr(runner_module, "SHRINK_EVERY", 40)
    path = tmp_path / "random.gguf"
    if has_window:
        write_gguf(path, save_checkpoint(tmp_path / "checkpoint"))
    else:
        write_random_llama(path)
    settings = LoadSettings(
        batch_tokens=128, rows=12, threads=1, kv_type="f32", kv_layout=kv_layout
    )
    runner, judge = (load_runner(path, settings, FACTS) for _ in range(2))
    runner.set_kv_blocks(blocks)
    traffic, process = Traffic(runner, blocks), psutil.Process()
    settled_bytes = wrong = checked = apart = 0

    for step in range(STEPS):
        if traffic.random.random() < 0.2 and len(traffic.scheduler.ids()) < 30:
            traffic.arrive(step)
        if traffic.random.random() < 0.03 and traffic.scheduler.ids():
            traffic.scheduler.cancel(traffic.random.choice(traffic.scheduler.ids()))
        traffic.step()
        assert runner.held_tokens <= most_tokens(blocks * SIZE), "more than was leased"
        apart += runner.buffers > 0
        if step == SETTLED:
            settled_bytes = process.memory_info().rss
    grown = process.memory_info().rss / settled_bytes
    while traffic.scheduler.has_work:
        traffic.step()
    traffic.scheduler.check()
    for seq_id in traffic.ended[:: max(len(traffic.ended) // 60, 1)]:
        said = traffic.said[seq_id]
        alone = Asked(traffic.prompts[seq_id], len(said))
        if said:
            wrong += ToyScheduler(judge).answer(alone)[0] != said
            checked += 1

    bar(
        f"GGUF, {blocks} blocks, {kv_layout}{', with windows' if has_window else ''}: {STEPS} steps,"
        f" {len(traffic.ended)} answers, {traffic.scheduler.preemptions} preemptions, {wrong} of {checked} differ,"
        f" memory {grown - 1:+.1%}"
    )
    if kv_layout == "unified":
        assert traffic.scheduler.preemptions > 1
        assert runner.context_cells > 256
    assert (apart > 0) is (kv_layout != "unified"), f"{apart} steps with buffers"
    assert checked > 40
    assert wrong <= checked // 50, f"{wrong} of {checked} differ: near-ties alone are rarer"
    assert grown < 1.03, f"memory grew by {grown - 1:.1%}"
    runner.close()
    judge.close()
