"""Our engine without HTTP: the runner by itself, with rows made by hand, and the whole engine loop over it."""

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from tests.gpu.timing import wait
from torch import Tensor

from llmhost.core.output import Delta
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import ModelRef, SequenceSpec
from llmhost.core.step import Draw, Drawn, Row, StepResult
from llmhost.engines.torch.runner import TorchRunner
from llmhost.gpu.lane import DeviceLane
from llmhost.observe.clock import SystemClock
from llmhost.schedule.engine_loop import EngineLoop
from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.scheduler import Scheduler

GREEDY = Sampling(temperature=0.0)
WARM_STEPS = 10
_CHUNK_BLOCKS = 1024


def fill_kv(runner: TorchRunner, blocks: int) -> None:
    """`blocks` of random keys and values, where there were none: attention over zeros is not what it will be."""
    runner.most_rows = 0  # graphs come with the steps that need them
    runner.set_kv_blocks(0)
    runner.set_kv_blocks(blocks)
    for layer in runner._open_kv().layers:
        for cache in layer:
            for part in cache.split(_CHUNK_BLOCKS) if isinstance(cache, Tensor) else ():
                if part.is_floating_point():
                    _draw(part)


def _draw(part: Tensor) -> None:
    if part.dtype.itemsize > 1:
        part.normal_()
    else:
        part.copy_(torch.randn(part.shape, device=part.device).to(part.dtype))


@dataclass(slots=True)
class Decoders:
    """`batch` sequences that decode, each `context` tokens into its text, over blocks in no order."""

    runner: TorchRunner
    batch: int
    context: int
    steps: int
    """Most steps that there is room for."""
    sampling: Sampling = GREEDY
    rows: list[Row] = field(init=False)

    def __post_init__(self) -> None:
        size = self.runner.facts.block_tokens
        each = -(-(self.context + self.steps + 1) // size)
        fill_kv(self.runner, self.batch * each + 1)
        rng = random.Random(5)
        blocks = rng.sample(range(1, self.batch * each + 1), self.batch * each)
        vocab = self.runner.facts.vocab_size
        self.rows = [
            Row(
                seq_id=place + 1,
                tokens=(rng.randrange(vocab),),
                start=self.context - 1,
                blocks=blocks[place * each : (place + 1) * each],
                sampling=self.sampling,
                seed=place,
                wants_token=True,
                prompt_tokens=self.context,
            )
            for place in range(self.batch)
        ]

    def step(self) -> None:
        self.advance(self.runner.run(self.rows))

    def advance(self, drawn: Sequence[Drawn]) -> None:
        self.rows = [
            row._replace(tokens=(_token(one),), start=row.start + 1)
            for row, one in zip(self.rows, drawn, strict=True)
        ]

    @property
    def seen(self) -> int:
        """Positions that a step reads, of all rows together."""
        return sum(row.start + 1 for row in self.rows)


def _token(drawn: Drawn) -> int:
    if isinstance(drawn, Draw):
        return drawn.tokens[-1]
    assert isinstance(drawn, int), f"a row drew no token: {drawn!r}"
    return drawn


def runner_step_s(decoders: Decoders, steps: int) -> float:
    """Median of `run` by the host's clock."""
    for _ in range(WARM_STEPS):
        decoders.step()
    wait(decoders.runner.device)
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        drawn = decoders.runner.run(decoders.rows)
        times.append(time.perf_counter() - began)
        decoders.advance(drawn)
    return statistics.median(times)


@dataclass(frozen=True, slots=True)
class Kernels:
    """What a step's kernels take by torch's profiler."""

    total_s: float
    """Of one step, as if they ran one after another."""
    most: list[tuple[str, float, float]]
    """Name, times per step, and seconds per step of those that take most."""


def kernel_times(call: Callable[[], object], device: torch.device, rounds: int = 5) -> Kernels:
    """Of `call`, which is run before it is watched."""
    from torch.profiler import ProfilerActivity, profile

    is_gpu = device.type == "cuda"
    call()
    kind = ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU
    with profile(activities=[kind], acc_events=True) as watched:
        for _ in range(rounds):
            call()
        wait(device)
    spent = [
        (event.key, event.count / rounds, _device_us(event, is_gpu=is_gpu) / 1e6 / rounds)
        for event in watched.key_averages()
    ]
    spent = sorted((one for one in spent if one[2] > 0), key=lambda one: -one[2])
    return Kernels(sum(seconds for _, _, seconds in spent), spent[:30])


def _device_us(event: Any, *, is_gpu: bool) -> float:
    return float(event.self_device_time_total if is_gpu else event.self_cpu_time_total)


def prompt_row(runner: TorchRunner, tokens: int) -> Row:
    """A prompt over blocks of its own, after which one token is drawn."""
    blocks = -(-tokens // runner.facts.block_tokens)
    fill_kv(runner, blocks + 1)
    return _prompt(runner, tokens, range(1, blocks + 1))


def with_prompt(decoders: Decoders, tokens: int) -> list[Row]:
    """A step of all but the last one, and in its place and its blocks a prompt."""
    *others, last = decoders.rows
    return [*others, _prompt(decoders.runner, tokens, last.blocks)]


def _prompt(runner: TorchRunner, tokens: int, blocks: Sequence[int]) -> Row:
    ids = random.Random(tokens).choices(range(runner.facts.vocab_size), k=tokens)
    return Row(0, ids, 0, blocks, GREEDY, 0, True, prompt_tokens=tokens)


# ---------------------------------------------------------------- the whole engine loop


class _Silent:
    """A random model has no words."""

    is_armed = True
    is_stopped = False

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


class _Wordless:
    """As much of a tokenizer as the loop asks for."""

    def watch(self, stop: Sequence[str] = (), shown: Sequence[str] = ()) -> _Silent:
        return _Silent()


@contextmanager
def _kept(runner: TorchRunner) -> Iterator[None]:
    """An engine loop closes its runner when it stops; this one is needed again."""
    runner.close = lambda: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del runner.close


@dataclass(frozen=True, slots=True)
class EngineRun:
    """What an engine loop did."""

    step_s: float | None
    """Median time from the begin of a step to the begin of the next one, of steps in which all decode."""
    tokens_per_s: float
    """Of the whole run, prompts included."""
    steps: int
    is_whole: bool
    """Whether it ended before its time was up."""


def engine_run(
    runner: TorchRunner,
    *,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    at_once: int,
    tokens_per_step: int,
    most_s: float,
    sampling: Sampling = GREEDY,
) -> EngineRun:
    """Answer `prompts`, so many at a time, by the engine loop that serves."""
    longest = max(map(len, prompts)) + new_tokens
    blocks = at_once * (-(-longest // runner.facts.block_tokens) + 1)
    runner.most_rows = at_once
    runner.set_kv_blocks(0)
    runner.set_kv_blocks(blocks)
    limits = SchedulerLimits(
        max_batch_size=at_once,
        max_tokens_per_batch=tokens_per_step,
        max_sequence_length=runner.facts.max_sequence_length,
        kv_blocks=blocks,
        block_tokens=runner.facts.block_tokens,
        watermark_share=0.0,
        target_itl_ms=1e9,
        prefix_cache=False,
    )
    steps: list[tuple[int, int]] = []  # when it began, and how many decode; 0 where a prompt is fed

    def on_step(result: StepResult) -> None:
        is_decode = all(len(row.tokens) == 1 for row in result.rows)
        steps.append((result.started_ns, len(result.rows) if is_decode else 0))

    async def answer() -> tuple[float, int, bool]:
        loop = EngineLoop(
            "bench",
            runner,
            Scheduler(limits),
            tokenizer=_Wordless(),  # type: ignore[arg-type]
            lane=DeviceLane(runner.facts.device, SystemClock()),
            max_queue=len(prompts),
            on_step=on_step,
        )
        loop.start()
        done, said = asyncio.Event(), 0
        waiting, left = iter(enumerate(prompts)), len(prompts)

        def submit(number: int, prompt: Sequence[int]) -> None:
            spec = SequenceSpec(
                request_id=f"req_{number}",
                index=0,
                model=ModelRef("bench", 1),
                prompt=tuple(prompt),
                sampling=sampling,
                seed=number,
                max_new_tokens=new_tokens,
                arrival_ns=time.monotonic_ns(),
            )
            loop.submit(spec, hear)

        def hear(delta: Delta) -> None:
            nonlocal said, left
            said += len(delta.tokens)
            if delta.finish_reason is not None:
                assert delta.error is None, delta.error
                left -= 1
                if (following := next(waiting, None)) is not None:
                    submit(*following)
                elif not left:
                    done.set()

        began = time.perf_counter()
        for number, prompt in itertools.islice(waiting, at_once):
            submit(number, prompt)
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), most_s)
        spent, is_whole = time.perf_counter() - began, done.is_set()
        await loop.stop()
        steps_ns = steps[-1][0] - steps[0][0] if steps else 1
        print(
            f"      engine thread waits {loop._flights.waited_ns / steps_ns:.0%} of the time;"
            f" {loop._flights.wasted_steps} wasted steps of {len(steps)}"
        )
        return spent, said, is_whole

    with _kept(runner):
        spent, said, is_whole = asyncio.run(answer())
    pairs = [
        (later - began) / 1e9
        for (began, rows), (later, _) in itertools.pairwise(steps)
        if rows == at_once
    ]
    return EngineRun(
        statistics.median(pairs[WARM_STEPS:] or pairs) if pairs else None,
        said / spent,
        len(pairs),
        is_whole,
    )


def random_prompts(runner: TorchRunner, count: int, tokens: int) -> list[list[int]]:
    rng = random.Random(count * 100_003 + tokens)
    vocab = range(runner.facts.vocab_size)
    return [rng.choices(vocab, k=tokens) for _ in range(count)]
