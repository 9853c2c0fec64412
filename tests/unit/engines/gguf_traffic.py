"""Random callers of a GGUF runner, by way of the scheduler."""

import random

from tests.unit.schedule.kit import SpelledWatch, a_spec

from llmhost.core.ports import RunnerFacts
from llmhost.core.step import StepResult, split_exactly, work_units
from llmhost.engines.llama.runner import LlamaRunner
from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.scheduler import Scheduler

SIZE, HOST_BLOCKS = 16, 30
FACTS = RunnerFacts(
    device="cpu:0",
    vocab_size=0,
    max_sequence_length=1200,
    block_tokens=SIZE,
    kv_block_bytes=1,
    weights_bytes=0,
)


class Traffic:
    """A scheduler over a real runner, and what each caller has heard."""

    def __init__(self, runner: LlamaRunner, blocks: int) -> None:
        self.random = random.Random(11)
        self.runner = runner
        self.scheduler = Scheduler(
            SchedulerLimits(
                max_batch_size=12,
                max_tokens_per_batch=128,
                max_sequence_length=1200,
                kv_blocks=blocks,
                block_tokens=SIZE,
                host_kv_blocks=HOST_BLOCKS,
                watermark_share=0.0,
            )
        )
        self.beginnings = [self.tokens(count) for count in (40, 130, 300, 500)]
        self.prompts: dict[int, tuple[int, ...]] = {}
        self.said: dict[int, list[int]] = {}
        self.ended: list[int] = []

    def tokens(self, count: int) -> list[int]:
        return self.random.choices(range(150), k=count)

    def arrive(self, seq_id: int) -> None:
        before = self.random.choice([*self.beginnings, []])
        prompt = (*before, *self.tokens(self.random.randint(1, 60)))
        spec = a_spec(prompt, max_new_tokens=self.random.randint(1, 30), arrival_ns=seq_id)
        self.prompts[seq_id], self.said[seq_id] = prompt, []
        self.hear([one] if (one := self.scheduler.add(seq_id, spec, SpelledWatch())) else [])

    def step(self) -> None:
        rows = self.scheduler.plan()
        if not rows:
            return
        self.runner.move_blocks(self.scheduler.take_moves())
        drawn = self.runner.run(rows)
        shares = split_exactly(1000, [work_units(row) for row in rows])
        self.hear(self.scheduler.absorb(StepResult(rows, drawn, 0, 1000, shares)))

    def hear(self, emissions: list) -> None:  # type: ignore[type-arg]
        for seq_id, delta in emissions:
            self.said[seq_id] += delta.tokens
            assert delta.error is None, delta.error
            if delta.finish_reason is not None:
                self.ended.append(seq_id)
