"""What guessing brings on the built-in model: `python -m tests.bench.bench_speculation [part of a text's name]`.

Whole answers through the real scheduler and runner, on one thread, in the engine thread's CPU time: a machine that is
busy with other things drags all of them alike. Each line is the median of alternating rounds.
"""

import statistics
import sys
import time
from collections.abc import Sequence

import torch
from tests.unit.schedule.kit import a_spec

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.ports import Drafter, Runner
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import SequenceSpec
from llmhost.core.step import Row, StepResult, confirmed_drafts, split_exactly, work_units
from llmhost.deploy.sources import BUILT_IN_MODELS
from llmhost.engines.builtin.corpus import known_answers
from llmhost.engines.torch.load import load_runner
from llmhost.gpu.lane import FreeLane
from llmhost.observe.clock import SystemClock
from llmhost.schedule.draft_model import ModelDrafter
from llmhost.schedule.drafting import PromptLookup
from llmhost.schedule.guesser import Guesser
from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.scheduler import Scheduler
from llmhost.schedule.speculation import Speculation
from llmhost.text.tokenizer import load_tokenizer

BLOCKS = 1024
ROUNDS = 3


def load(name: str, blocks: int) -> Runner:
    runner = load_runner(BUILT_IN_MODELS / name, block_tokens=16, options=TorchOptions(threads=1))
    runner.set_kv_blocks(blocks)
    return runner


class Bench:
    def __init__(self) -> None:
        self.tokenizer = load_tokenizer(BUILT_IN_MODELS / "tiny")
        self.runner = load("tiny", BLOCKS)
        self.small = load("tiny-draft", BLOCKS)
        self.controllers: dict[tuple[str, str], Speculation] = {}

    def drafter(self, method: str) -> Drafter | None:
        if method == "off":
            return None
        if method == "ngram":
            return PromptLookup()
        return ModelDrafter(
            "draft",
            self.small,
            lane=FreeLane(SystemClock()),
            kv_blocks=BLOCKS,
            vocab_size=self.tokenizer.vocab_size,
            end_ids=self.tokenizer.eos_ids,
        )

    def guesser(self, method: str, what: str) -> Guesser | None:
        """What has been learned stays from round to round, as in a model that stays loaded."""
        drafter = self.drafter(method)
        if drafter is None:
            return None
        fresh = Speculation(most_tokens=5, most_sequences=16)
        learned = self.controllers.setdefault((method, what), fresh)
        return Guesser(drafter, learned, clock_ns=time.thread_time_ns)

    def say(self, specs: Sequence[SequenceSpec], method: str, what: str) -> "Said":
        limits = SchedulerLimits(
            max_batch_size=16,
            max_tokens_per_batch=1024,
            max_sequence_length=2048,
            kv_blocks=BLOCKS,
            block_tokens=16,
            prefix_cache=False,
        )
        scheduler, guesser, said = Scheduler(limits), self.guesser(method, what), Said(len(specs))
        for place, spec in enumerate(specs):
            scheduler.add(place, spec, self.tokenizer.watch())
        began = time.thread_time()
        while scheduler.has_work:
            if guesser is not None:
                guesser.guess(scheduler)
            rows = scheduler.plan()
            result = self.step(rows)
            said.hear(result)
            emissions = scheduler.absorb(result)
            for place, delta in emissions:
                said.tokens[place] += delta.tokens
            if guesser is not None:
                guesser.learn(result)
                guesser.forget_ended(emissions)
        said.took_s = time.thread_time() - began
        return said

    def step(self, rows: list[Row]) -> StepResult:
        began_ns = time.thread_time_ns()
        drawn = self.runner.run(rows)
        ended_ns = time.thread_time_ns()
        shares = split_exactly(ended_ns - began_ns, [work_units(row) for row in rows])
        return StepResult(rows, drawn, began_ns, ended_ns, shares)


class Said:
    def __init__(self, count: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self.steps = self.guesses = self.right = 0
        self.took_s = 0.0

    def hear(self, result: StepResult) -> None:
        self.steps += 1
        for row, drawn in zip(result.rows, result.drawn, strict=True):
            self.guesses += row.drafts
            self.right += confirmed_drafts(row, drawn)

    @property
    def rate(self) -> float:
        return sum(map(len, self.tokens)) / self.took_s


def main() -> None:
    torch.set_num_threads(1)
    bench = Bench()
    chats = [
        bench.tokenizer.encode(bench.tokenizer.render_chat(known.messages, tools=known.tools))
        for known in known_answers()[::95]
    ]
    eos = bench.tokenizer.eos_ids
    greedy, hot = Sampling(temperature=0.0), Sampling(temperature=1.0)
    texts = {
        "known answers, greedy": [
            a_spec(chat, sampling=greedy, max_new_tokens=120, stop_token_ids=eos) for chat in chats
        ],
        "known answers, temperature 1": [
            a_spec(chat, sampling=hot, seed=i, max_new_tokens=120, stop_token_ids=eos)
            for i, chat in enumerate(chats)
        ],
        "beyond its end, which repeats itself": [
            a_spec(chat, sampling=greedy, max_new_tokens=120) for chat in chats[::2]
        ],
    }
    for what, specs in texts.items():
        if not all(word in what for word in sys.argv[1:]):
            continue
        for together in (1, len(specs)):
            report(bench, f"{what}, {together} at a time", specs, together)


def report(bench: Bench, what: str, specs: Sequence[SequenceSpec], together: int) -> None:
    groups = [specs[i : i + together] for i in range(0, len(specs), together)]
    methods = ("off", "ngram", "draft")
    rates: dict[str, list[float]] = {method: [] for method in methods}
    last: dict[str, list[Said]] = {}
    for _ in range(ROUNDS):
        for method in methods:
            last[method] = [bench.say(group, method, what) for group in groups]
            tokens = sum(len(t) for said in last[method] for t in said.tokens)
            rates[method].append(tokens / sum(said.took_s for said in last[method]))
    plain = statistics.median(rates["off"])
    for method in methods:
        said = last[method]
        same = [s.tokens for s in said] == [s.tokens for s in last["off"]]
        guesses, right = sum(s.guesses for s in said), sum(s.right for s in said)
        rate = statistics.median(rates[method])
        print(  # noqa: T201
            f"{what:45} {method:6} {rate:7.1f} tokens/s ({rate / plain - 1:+.0%}),"
            f" {sum(s.steps for s in said)} steps, {right} of {guesses} guesses right, same: {same}",
            flush=True,
        )


if __name__ == "__main__":
    main()
