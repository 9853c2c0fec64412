"""CPU time of the scheduler alone per step, with N sequences decoding: `python -m tests.bench.bench_scheduler`.

The runner's time is left out: a step's result is made from thin air.
"""

import gc
import statistics
import time

from llmhost.core.sampling import Sampling
from llmhost.core.sequence import ModelRef, SequenceSpec
from llmhost.core.step import Row, StepResult, split_exactly, work_units
from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.scheduler import Scheduler

STEPS = 300
PROMPT_TOKENS = 200
BLOCK_TOKENS = 16


class SilentWatch:
    """Detokenising is not the scheduler's time."""

    is_armed = True
    is_stopped = False

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def decoding(count: int) -> Scheduler:
    """A scheduler with `count` sequences whose prompts are computed."""
    tokens = PROMPT_TOKENS + STEPS * 2
    scheduler = Scheduler(
        SchedulerLimits(
            max_batch_size=count,
            max_tokens_per_batch=count * PROMPT_TOKENS,
            max_sequence_length=tokens * 2,
            kv_blocks=count * tokens // BLOCK_TOKENS * 2,
            block_tokens=BLOCK_TOKENS,
        )
    )
    for seq_id in range(count):
        spec = SequenceSpec(
            request_id=f"req_{seq_id}",
            index=0,
            model=ModelRef("bench", 1),
            prompt=tuple(range(PROMPT_TOKENS)),
            sampling=Sampling(),
            seed=0,
            max_new_tokens=tokens,
            stop_token_ids=frozenset({2}),
            arrival_ns=seq_id,
        )
        scheduler.add(seq_id, spec, SilentWatch())
    absorb(scheduler, scheduler.plan())
    return scheduler


def absorb(scheduler: Scheduler, rows: list[Row]) -> None:
    shares = split_exactly(10_000_000, [work_units(row) for row in rows])
    emissions = scheduler.absorb(StepResult(rows, [7] * len(rows), 0, 10_000_000, shares))
    assert len(emissions) == len(rows)


def measure(count: int) -> tuple[float, float]:
    """Median CPU milliseconds of (plan, absorb with the split of the step's time)."""
    scheduler = decoding(count)
    plans, absorbs = [], []
    gc.collect()
    for _ in range(STEPS):
        began = time.thread_time_ns()
        rows = scheduler.plan()
        planned = time.thread_time_ns()
        absorb(scheduler, rows)
        plans.append(planned - began)
        absorbs.append(time.thread_time_ns() - planned)
    return statistics.median(plans) / 1e6, statistics.median(absorbs) / 1e6


def main() -> None:
    print("decoders  plan ms  absorb ms  sum ms")  # noqa: T201 - a script's output
    for count in (1, 64, 256):
        plan_ms, absorb_ms = measure(count)
        print(f"{count:8}  {plan_ms:7.3f}  {absorb_ms:9.3f}  {plan_ms + absorb_ms:6.3f}")  # noqa: T201


if __name__ == "__main__":
    main()
