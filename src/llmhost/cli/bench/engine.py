"""Steps of one model, measured: the real scheduler and the real runner, and no HTTP.

A decode case runs so many sequences of a context length, a prefill case one prompt alone in one step. Prompts are
random and never repeat, so that nothing of them is known to any cache.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.ports import TextWatch
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import ModelRef, SequenceSpec
from llmhost.core.step import StepResult, split_exactly, work_units
from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.scheduler import Scheduler

if TYPE_CHECKING:
    from llmhost.engines.torch.bench import Ceilings, ModelWork, Phases
    from llmhost.engines.torch.random_model import RandomShape
    from llmhost.engines.torch.runner import TorchRunner

WARM_STEPS = 3
PREFILL_CHUNK = 2048
PREFILL_ROUNDS = 3
NO_ITL_MS = 1e9
"""Prompts are computed in whole chunks, however long those who decode already wait for it."""


@dataclass(frozen=True, slots=True)
class Case:
    """`batch` sequences that decode at `context`, or one prompt of `context` tokens."""

    kind: str
    batch: int
    context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Medians over steps. Floors and shares are None where the machine's ceilings were not measured."""

    kind: str
    batch: int
    context: int
    """Mean over the measured steps."""
    step_ms: float
    forward_ms: float
    sample_ms: float
    python_ms: float
    """CPU time of everything but forward pass and sampling: plan, layout of the step, absorb."""
    tokens_per_s: float
    step_bytes: int
    """Least that a step must move: weights once, and keys and values of every context."""
    gb_per_s: float
    floor_ms: float
    roofline_share: float


@dataclass(frozen=True, slots=True)
class Step:
    whole_ns: int
    forward_ns: int
    sample_ns: int
    python_ns: int
    """CPU time of the rest, in this thread: what others take of the machine is not counted."""
    fed: int
    """Tokens."""
    seen: int
    """Positions in the cache after it, of all rows together."""


class EngineBench:
    """One loaded model."""

    def __init__(
        self, runner: "TorchRunner", phases: "Phases", watch: Callable[[], TextWatch]
    ) -> None:
        self._runner = runner
        self._phases = phases
        self._watch = watch
        self._rng = Random(1)
        self._ids = iter(range(1, 2**31))

    def decode(self, case: Case, steps: int) -> list[Step]:
        answer = headroom(case, steps)
        scheduler = self._scheduler(case, case.context + answer, _chunk(case))
        for _ in range(case.batch):
            self._add(scheduler, case.context, answer)
        while self._step(scheduler).fed != case.batch:
            assert scheduler.has_work, "sequences ended before all of them decoded"
        for _ in range(WARM_STEPS - 1):
            self._step(scheduler)
        return [self._step(scheduler) for _ in range(steps)]

    def prefill(self, case: Case) -> list[Step]:
        steps = []
        for _ in range(1 + PREFILL_ROUNDS):
            scheduler = self._scheduler(case, case.context + 2, case.context)
            self._add(scheduler, case.context, 2)
            steps.append(self._step(scheduler))
        return steps[1:]

    def _scheduler(self, case: Case, longest: int, chunk: int) -> Scheduler:
        size = self._runner.facts.block_tokens
        blocks = case.batch * (-(-longest // size) + 1)
        self._runner.set_kv_blocks(0)
        self._runner.set_kv_blocks(blocks)
        return Scheduler(
            SchedulerLimits(
                max_batch_size=case.batch,
                max_tokens_per_batch=max(chunk, case.batch),
                max_sequence_length=self._runner.facts.max_sequence_length,
                kv_blocks=blocks,
                block_tokens=size,
                watermark_share=0.0,
                target_itl_ms=NO_ITL_MS,
                prefix_cache=False,
            )
        )

    def _add(self, scheduler: Scheduler, prompt_tokens: int, answer_tokens: int) -> None:
        vocab = self._runner.facts.vocab_size
        seq_id = next(self._ids)
        spec = SequenceSpec(
            request_id=f"req_{seq_id}",
            index=0,
            model=ModelRef("bench", 1),
            prompt=tuple(self._rng.choices(range(vocab), k=prompt_tokens)),
            sampling=Sampling(temperature=0.0),
            seed=seq_id,
            max_new_tokens=answer_tokens,
            arrival_ns=seq_id,
        )
        scheduler.add(seq_id, spec, self._watch())

    def _step(self, scheduler: Scheduler) -> Step:
        phases = self._phases
        phases.forward_ns = phases.sample_ns = phases.cpu_ns = 0
        began, cpu = time.perf_counter_ns(), time.thread_time_ns()
        rows = scheduler.plan()
        started = time.perf_counter_ns()
        drawn = self._runner.run(rows)
        ended = time.perf_counter_ns()
        shares = split_exactly(ended - started, [work_units(row) for row in rows])
        scheduler.absorb(StepResult(rows, drawn, started, ended, shares))
        python = time.thread_time_ns() - cpu - phases.cpu_ns
        whole = time.perf_counter_ns() - began
        fed = sum(len(row.tokens) for row in rows)
        seen = sum(row.start + len(row.tokens) for row in rows)
        return Step(whole, phases.forward_ns, phases.sample_ns, python, fed, seen)


def headroom(case: Case, steps: int) -> int:
    """Most tokens that a sequence says: the first ones speak while the prompts of the others are computed."""
    if case.kind == "prefill":
        return 2
    prompt_steps = case.batch * case.context // (_chunk(case) - case.batch) + 2
    return prompt_steps + WARM_STEPS + steps + 2


def _chunk(case: Case) -> int:
    return max(PREFILL_CHUNK, 2 * case.batch)


def figures(case: Case, steps: list[Step], work: "ModelWork", ceilings: "Ceilings") -> Measured:
    """Steps of one case as figures. Pure."""
    step_s = statistics.median(step.whole_ns for step in steps) / 1e9
    fed, seen = steps[0].fed, int(statistics.mean(step.seen for step in steps))
    is_decode = case.kind == "decode"
    # Each token of a prompt attends to those before it and to itself.
    pairs = seen if is_decode else seen * (seen + 1) // 2
    logits = fed if is_decode else 1
    moved = work.weights_bytes + seen * work.kv_token_bytes
    flops = fed * work.token_flops + logits * work.logits_flops + pairs * work.attention_flops
    floor_s = max(moved / ceilings.bytes_per_s, flops / ceilings.flops_per_s)
    return Measured(
        kind=case.kind,
        batch=case.batch,
        context=seen // case.batch,
        step_ms=1e3 * step_s,
        forward_ms=statistics.median(step.forward_ns for step in steps) / 1e6,
        sample_ms=statistics.median(step.sample_ns for step in steps) / 1e6,
        python_ms=statistics.median(step.python_ns for step in steps) / 1e6,
        tokens_per_s=fed / step_s,
        step_bytes=moved,
        gb_per_s=moved / step_s / 1e9,
        floor_ms=1e3 * floor_s,
        roofline_share=floor_s / step_s,
    )


@contextmanager
def random_folder(shape: "RandomShape") -> Iterator[Path]:
    """A checkpoint of random weights, gone when the block ends."""
    from llmhost.engines.torch.random_model import write_random

    with TemporaryDirectory(prefix="llmhost-bench-") as name:
        write_random(Path(name), shape)
        yield Path(name)


@contextmanager
def loaded(
    folder: Path, options: TorchOptions, block_tokens: int
) -> Iterator[tuple["TorchRunner", EngineBench]]:
    """A model with a bench around it. Raises ModelUnavailable."""
    from llmhost.engines.torch.bench import watched
    from llmhost.engines.torch.load import load_runner

    runner = load_runner(folder, block_tokens=block_tokens, options=options)
    try:
        if runner.packing is not None:
            runner.packing.wait()
        with watched(runner) as phases:
            yield runner, EngineBench(runner, phases, _watches(folder))
    finally:
        runner.close()


def _watches(folder: Path) -> Callable[[], TextWatch]:
    """Text is made of the tokens where the model has a tokenizer, as in serving."""
    if not (folder / "tokenizer.json").is_file():
        return _Silent
    from llmhost.text.tokenizer import load_tokenizer

    return load_tokenizer(folder).watch


class _Silent:
    """For a model without a tokenizer."""

    is_armed = True
    is_stopped = False
    stop: str | None = None

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def run_case(bench: EngineBench, case: Case, steps: int) -> list[Step]:
    return bench.decode(case, steps) if case.kind == "decode" else bench.prefill(case)
