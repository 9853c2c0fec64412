"""A toy scheduler that drives a runner: as many sequences, chunks and odd block tables as a test likes."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmhost.core.ports import Runner
from llmhost.core.request import Sampling
from llmhost.core.step import Row

GREEDY = Sampling(temperature=0.0)


@dataclass(slots=True)
class Asked:
    """A sequence: its tokens so far, and how many of them the cache holds."""

    prompt: Sequence[int]
    new_tokens: int
    sampling: Sampling = GREEDY
    seed: int = 0
    joins_at: int = 0
    """Step from which on it takes part."""
    made: list[int] = field(default_factory=list)
    cached: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.made]

    @property
    def is_done(self) -> bool:
        return len(self.made) >= self.new_tokens


class ToyScheduler:
    """Hands out shuffled blocks and feeds every sequence in each step, prompts in chunks of at most `chunk`."""

    def __init__(
        self, runner: Runner, *, blocks: int = 96, chunk: int = 1000, shuffle_seed: int = 5
    ) -> None:
        self.runner = runner
        self.chunk = chunk
        self.random = random.Random(shuffle_seed)
        self.free = list(range(blocks))
        self.random.shuffle(self.free)
        self.step_count = 0
        runner.set_kv_blocks(blocks)

    def answer(self, *asked: Asked) -> list[list[int]]:
        """Run until all have ended; their new tokens."""
        while not all(one.is_done for one in asked):
            self.step(asked)
        return [one.made for one in asked]

    def step(self, asked: Sequence[Asked]) -> None:
        running = [one for one in asked if not one.is_done and one.joins_at <= self.step_count]
        self.random.shuffle(running)
        rows = [self._row(i, one) for i, one in enumerate(running)]
        drawn = self.runner.run(rows)
        for row, one, token in zip(rows, running, drawn, strict=True):
            one.cached += len(row.tokens)
            assert (token is not None) == row.wants_token
            if token is not None:
                one.made.append(token)
            if one.is_done:
                self.release(one)
        self.step_count += 1

    def release(self, one: Asked) -> None:
        """Take the blocks of a sequence: it has ended, or must start over."""
        self.free.extend(one.blocks)
        self.random.shuffle(self.free)
        one.blocks = []
        one.cached = 0

    def _row(self, index: int, one: Asked) -> Row:
        fed = one.tokens[one.cached : one.cached + self.chunk]
        end = one.cached + len(fed)
        size = self.runner.facts.block_tokens
        while len(one.blocks) * size < end:
            one.blocks.append(self.free.pop())
        return Row(
            seq_id=index,
            tokens=fed,
            start=one.cached,
            blocks=one.blocks,
            sampling=one.sampling,
            seed=one.seed,
            wants_token=end == len(one.tokens),
        )
