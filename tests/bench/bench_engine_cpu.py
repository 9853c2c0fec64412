"""The torch engine on the CPU beside transformers' own generation: `python -m tests.bench.bench_engine_cpu`.

One random bf16 model (28 layers x 1,024 unless told otherwise), loaded twice: by our runner, and by transformers with
SDPA attention. Rounds of ours and theirs alternate, and medians are printed, because machines drift. Beside the wall
clock there is CPU time, over all threads: on a machine that others use too it is the fairer of the two. With
`--clock cpu` the latencies of stall and prefix are CPU time as well, which makes sense with `--threads 1` alone.

  streams   8 streams at once: transformers' continuous batching, and `generate` with one static batch
  mixed     prompts of 16 to 1,500 tokens, of which the next comes whenever an answer ends; ours with its own bound
            on the latency of those that run, and without it as theirs is
  python    what our engine's Python takes per step, at 64 sequences
  stall     inter-token latency of 8 streams while a prompt of 4,000 tokens comes in
  prefix    time to first token of a prompt whose first 1,000 tokens were computed before
"""

import argparse
import contextlib
import io
import itertools
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers

from llmhost.cli.bench.figures import percentile
from llmhost.config.schema.engines import TorchOptions
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import ModelRef, SequenceSpec
from llmhost.core.step import StepResult, split_exactly, work_units
from llmhost.engines.torch.bench import measure_ceilings, model_work
from llmhost.engines.torch.load import load_runner
from llmhost.engines.torch.random_model import RandomShape, write_random
from llmhost.engines.torch.runner import TorchRunner
from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.scheduler import Scheduler

BLOCK_TOKENS = 16
STREAMS = 8
PROMPT_TOKENS = 128
LENGTHS = (16, 1500, 200, 64, 700, 32, 400, 128, 16, 300, 50, 900)
"""Prompts of the mixed section, in order of arrival."""


class SilentWatch:
    """A random model has no words."""

    is_armed = True
    is_stopped = False

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


@dataclass(frozen=True)
class Cost:
    tokens: int
    wall_s: float
    cpu_s: float

    def per_s(self, clock: str) -> float:
        return self.tokens / (self.wall_s if clock == "wall" else self.cpu_s)


def timed(work: Callable[[], int]) -> Cost:
    """`work` returns how many tokens it generated."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    return Cost(tokens, time.perf_counter() - wall, time.process_time() - cpu)


class Ours:
    """Scheduler and runner, driven as the engine loop drives them."""

    clock: Callable[[], float] = staticmethod(time.perf_counter)
    """What steps are timed with, and so what the scheduler plans by."""

    def __init__(self, runner: TorchRunner, tokens: int, **limits: Any) -> None:
        blocks = -(-tokens // BLOCK_TOKENS) + 64
        runner.set_kv_blocks(0)
        runner.set_kv_blocks(blocks)
        self.runner = runner
        self.ids = itertools.count(1)
        self.scheduler = Scheduler(
            SchedulerLimits(
                max_batch_size=64,
                max_tokens_per_batch=1024,
                max_sequence_length=runner.facts.max_sequence_length,
                kv_blocks=blocks,
                block_tokens=BLOCK_TOKENS,
                least_chunk_tokens=runner.facts.least_chunk_tokens,
                rows_at_once=runner.facts.rows_at_once,
                **limits,
            )
        )

    def add(self, prompt: list[int], new_tokens: int) -> int:
        seq_id = next(self.ids)
        spec = SequenceSpec(
            request_id=f"req_{seq_id}",
            index=0,
            model=ModelRef("bench", 1),
            prompt=tuple(prompt),
            sampling=Sampling(temperature=0.0),
            seed=0,
            max_new_tokens=new_tokens,
            arrival_ns=time.monotonic_ns(),
        )
        self.scheduler.add(seq_id, spec, SilentWatch())
        return seq_id

    def step(self) -> list[tuple[int, int, bool]]:
        """(sequence, tokens that it got, whether it ended) of each that said something."""
        rows = self.scheduler.plan()
        began = int(1e9 * self.clock())
        drawn = self.runner.run(rows)
        ended = int(1e9 * self.clock())
        shares = split_exactly(ended - began, [work_units(row) for row in rows])
        said = self.scheduler.absorb(StepResult(rows, drawn, began, ended, shares))
        return [
            (seq_id, len(delta.tokens), delta.finish_reason is not None) for seq_id, delta in said
        ]

    def closed_loop(self, prompts: list[list[int]], new_tokens: int, at_once: int) -> int:
        waiting, tokens = iter(prompts), 0
        for prompt in itertools.islice(waiting, at_once):
            self.add(prompt, new_tokens)
        while self.scheduler.has_work:
            for _, count, is_end in self.step():
                tokens += count
                if is_end and (prompt := next(waiting, None)) is not None:
                    self.add(prompt, new_tokens)
        return tokens


class Theirs:
    """transformers, greedy, with an answer's full length."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()

    def static(self, prompts: list[list[int]], new_tokens: int) -> int:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
        return int((out.shape[1] - ids.shape[1]) * len(prompts))

    def continuous(self, prompts: list[list[int]], new_tokens: int, at_once: int) -> int:
        """Its manager, with room for what runs at once and no more: its mask grows with the cache."""
        config = transformers.GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        longest = max(map(len, prompts)) + new_tokens
        batching = transformers.ContinuousBatchingConfig(
            page_size=32,
            num_blocks=(-(-longest // 32) + 1) * at_once,
            max_batch_tokens=512,
            use_async_batching=False,
            use_cuda_graph=False,
            allow_block_sharing=False,
        )
        waiting, tokens, running = iter(prompts), 0, 0
        with self.model.continuous_batching_context_manager(
            generation_config=config, continuous_batching_config=batching, timeout=5
        ) as manager:
            for prompt in itertools.islice(waiting, at_once):
                manager.add_request(prompt, max_new_tokens=new_tokens)
                running += 1
            while running:
                result = manager.get_result(timeout=1)
                if result is None:
                    assert manager.is_running(), "transformers' manager ended"
                    continue
                if result.is_finished():
                    running -= 1
                    tokens += len(result.generated_tokens)
                    if (prompt := next(waiting, None)) is not None:
                        manager.add_request(prompt, max_new_tokens=new_tokens)
                        running += 1
        return tokens


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Bench:
    def __init__(self, folder: Path, rounds: int) -> None:
        options = TorchOptions(dtype="bfloat16", device="cpu")
        self.rounds = rounds
        self.runner = load_runner(folder, block_tokens=BLOCK_TOKENS, options=options)
        began = time.perf_counter()
        if self.runner.packing is not None:
            self.runner.packing.wait()
        say(f"weights packed in {time.perf_counter() - began:.0f} s")
        self.theirs = Theirs(folder)
        self.vocab = self.runner.facts.vocab_size
        self.rng = Random(1)

    def prompt(self, tokens: int) -> list[int]:
        return self.rng.choices(range(1, self.vocab), k=tokens)

    def compare(self, title: str, contenders: dict[str, Callable[[], int]]) -> None:
        """Rounds of all in turn; medians, and ratios of ours to each by rounds."""
        costs: dict[str, list[Cost]] = {name: [] for name in contenders}
        for _ in range(self.rounds):
            for name, work in contenders.items():
                costs[name].append(timed(work))
        for name, spent in costs.items():
            line = f"{title:8} {name:22}"
            for clock in ("wall", "cpu"):
                line += (
                    f" {statistics.median(one.per_s(clock) for one in spent):8.2f} tokens/{clock} s"
                )
                if name != "ours":
                    ratios = [
                        ours.per_s(clock) / theirs.per_s(clock)
                        for ours, theirs in zip(costs["ours"], spent, strict=True)
                    ]
                    line += f" (ours {statistics.median(ratios):.2f} x, {min(ratios):.2f} to {max(ratios):.2f})"
            say(line)

    def streams(self, new_tokens: int) -> None:
        prompts = [self.prompt(PROMPT_TOKENS) for _ in range(STREAMS)]
        room = STREAMS * (PROMPT_TOKENS + new_tokens)
        self.compare(
            "streams",
            {
                "ours": lambda: Ours(self.runner, room, prefix_cache=False).closed_loop(
                    prompts, new_tokens, STREAMS
                ),
                "continuous batching": lambda: self.theirs.continuous(prompts, new_tokens, STREAMS),
                "static batch": lambda: self.theirs.static(prompts, new_tokens),
            },
        )
        work, ceilings = model_work(self.runner), measure_ceilings(self.runner)
        context = PROMPT_TOKENS + new_tokens // 2
        moved = work.weights_bytes + STREAMS * context * work.kv_token_bytes
        flops = STREAMS * (work.token_flops + work.logits_flops + context * work.attention_flops)
        floor_s = max(moved / ceilings.bytes_per_s, flops / ceilings.flops_per_s)
        say(
            f"streams  floor of decode steps  {STREAMS / floor_s:8.2f} tokens/wall s:"
            f" {moved / 1e6:.0f} MB at {ceilings.bytes_per_s / 1e9:.1f} GB/s,"
            f" {flops / 1e9:.1f} GFLOP at {ceilings.flops_per_s / 1e9:.0f} GFLOP/s in bf16"
        )

    def mixed(self, new_tokens: int) -> None:
        prompts = [self.prompt(length) for length in LENGTHS]
        room = STREAMS * (max(LENGTHS) + new_tokens)
        self.compare(
            "mixed",
            {
                "ours": lambda: Ours(self.runner, room, prefix_cache=False).closed_loop(
                    prompts, new_tokens, STREAMS
                ),
                "ours, large chunks": lambda: Ours(
                    self.runner, room, prefix_cache=False, target_itl_ms=1e6
                ).closed_loop(prompts, new_tokens, STREAMS),
                "continuous batching": lambda: self.theirs.continuous(prompts, new_tokens, STREAMS),
            },
        )

    def stall(self, prompt_tokens: int, steps: int = 12) -> None:
        ours = Ours(self.runner, prompt_tokens + STREAMS * 2000 + 64)
        streams = {ours.add(self.prompt(PROMPT_TOKENS), 1500) for _ in range(STREAMS)}
        said: dict[int, float] = {}
        while len(said) < STREAMS:
            said |= {seq_id: 0.0 for seq_id, _, _ in ours.step()}

        def gaps(is_over: Callable[[list[tuple[int, int, bool]]], bool]) -> list[float]:
            found: list[float] = []
            last = dict.fromkeys(streams, Ours.clock())
            while True:
                heard = ours.step()
                now = Ours.clock()
                for seq_id, _, _ in heard:
                    if seq_id in streams:
                        found.append(now - last[seq_id])
                        last[seq_id] = now
                if is_over(heard):
                    return sorted(found)

        count = itertools.count(1)
        quiet = gaps(lambda _: next(count) >= steps)
        late = ours.add(self.prompt(prompt_tokens), 2)
        began = Ours.clock()
        busy = gaps(lambda heard: any(seq_id == late for seq_id, _, _ in heard))
        ttft = Ours.clock() - began
        p50, p99 = percentile(quiet, 50), percentile(busy, 99)
        say(
            f"stall    {STREAMS} streams: ITL p50 {1e3 * p50:.0f} ms alone, p99 {1e3 * p99:.0f} ms"
            f" ({p99 / p50:.2f} x) and p50 {1e3 * percentile(busy, 50):.0f} ms while {prompt_tokens} tokens"
            f" come in, which takes {ttft:.1f} s"
        )

    def prefix(self, shared_tokens: int = 1000, own_tokens: int = 32) -> None:
        ratios, colds, warms = [], [], []
        for _ in range(self.rounds):
            ours = Ours(self.runner, 4 * (shared_tokens + own_tokens))
            shared = self.prompt(shared_tokens)
            cold, warm = (
                self._first_token(ours, shared + self.prompt(own_tokens)) for _ in range(2)
            )
            colds.append(cold)
            warms.append(warm)
            ratios.append(warm / cold)
        say(
            f"prefix   {shared_tokens} shared tokens: TTFT {1e3 * statistics.median(colds):.0f} ms cold,"
            f" {1e3 * statistics.median(warms):.0f} ms warm ({statistics.median(ratios):.3f} of it)"
        )

    def _first_token(self, ours: Ours, prompt: list[int]) -> float:
        began = Ours.clock()
        seq_id = ours.add(prompt, 2)
        first = 0.0
        while ours.scheduler.has_work:
            if any(seq_id == said for said, _, _ in ours.step()) and not first:
                first = Ours.clock() - began
        return first


def python(sequences: int = 64, steps: int = 30) -> None:
    """CPU time of this thread, the forward pass and sampling left out: of a small model, as it is the same."""
    with tempfile.TemporaryDirectory() as name:
        shape = RandomShape(layers=2, hidden=64, ffn=128, heads=2, kv_heads=1, vocab=2048)
        write_random(Path(name), shape)
        from llmhost.cli.bench.engine import Case, loaded, run_case

        with loaded(Path(name), TorchOptions(dtype="float32", threads=1), BLOCK_TOKENS) as it:
            for context in (128, 512):
                measured = run_case(it[1], Case("decode", sequences, context), steps)
                spent = sorted(step.python_ns / 1e6 for step in measured)
                say(
                    f"python   {sequences} sequences, context {context}: median {statistics.median(spent):.3f} ms"
                    f" of CPU a step, p90 {percentile(spent, 90):.3f}, least {spent[0]:.3f}"
                )


SECTIONS = ("streams", "mixed", "python", "stall", "prefix")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers reports on stderr."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--family", default="llama")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--late-tokens", type=int, default=4000, help="of the stall's prompt")
    parser.add_argument("--threads", type=int, help="torch's own choice when absent")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    asked = parser.parse_args()
    wanted = asked.only.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there is: {', '.join(SECTIONS)}")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if asked.clock == "cpu":
        Ours.clock = staticmethod(time.process_time)
    heads = asked.hidden // 64
    shape = RandomShape(
        layers=asked.layers,
        hidden=asked.hidden,
        ffn=3 * asked.hidden,
        heads=heads,
        kv_heads=max(heads // 2, 1),
        vocab=32_000,
        family=asked.family,
    )
    say(
        f"{asked.family}, {shape.layers} layers x {shape.hidden}, bf16, {torch.get_num_threads()} threads,"
        f" {asked.rounds} rounds, latencies by the {asked.clock} clock;"
        f" torch {torch.__version__}, transformers {transformers.__version__}"
    )
    with tempfile.TemporaryDirectory() as name, quiet():
        if "python" in wanted:
            python()
            wanted.remove("python")
        if wanted:
            write_random(Path(name), shape)
            bench = Bench(Path(name), asked.rounds)
        for section in wanted:
            if section in ("streams", "mixed"):
                getattr(bench, section)(asked.new_tokens)
            elif section == "stall":
                bench.stall(asked.late_tokens)
            else:
                getattr(bench, section)()


if __name__ == "__main__":
    main()
