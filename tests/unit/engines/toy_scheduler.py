"""A toy scheduler that drives a runner: as many sequences, chunks, guesses and odd block tables as a test likes."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llmhost.core.errors import EngineFailed
from llmhost.core.output import TokenLogprobs
from llmhost.core.ports import Runner
from llmhost.core.sampling import Sampling
from llmhost.core.step import Draw, Drawn, GrammarState, Row

GREEDY = Sampling(temperature=0.0)

Guesser = Callable[[Sequence[int]], Sequence[int]]
"""What may come after the tokens that are known."""


@dataclass(slots=True)
class Asked:
    """A sequence: its tokens so far, and how many of them the cache holds."""

    prompt: Sequence[int]
    new_tokens: int
    sampling: Sampling = GREEDY
    seed: int = 0
    joins_at: int = 0
    """Step from which on it takes part."""
    guess: Guesser | None = None
    barred: frozenset[int] = frozenset()
    barred_until: int = 0
    grammar: GrammarState | None = None
    adapter: str | None = None
    made: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    failure: EngineFailed | None = None
    steps: int = 0
    cached: int = 0
    blocks: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = [*self.prompt, *self.made]

    @property
    def is_done(self) -> bool:
        is_complete = self.grammar is not None and self.grammar.is_ended
        return is_complete or self.failure is not None or len(self.made) >= self.new_tokens

    def take(self, row: Row, drawn: Drawn) -> None:
        """What the runner said of a row of this sequence."""
        if isinstance(drawn, EngineFailed):
            self.failure = drawn
            return
        draw = Draw((drawn,)) if isinstance(drawn, int) else drawn or Draw()
        assert bool(draw.tokens) == row.wants_token
        assert len(draw.tokens) <= row.drafts + 1
        self.steps += 1
        self.cached += len(row.tokens) - row.drafts + max(0, len(draw.tokens) - 1)
        self.prompt_logprobs += draw.prompt_logprobs
        room = self.new_tokens - len(self.made)
        self.logprobs += draw.logprobs[:room]
        for token in draw.tokens[:room]:
            self.made.append(token)
            self.tokens.append(token)
            if self.grammar is not None:
                self.grammar.accept(token)
                if self.grammar.is_ended:
                    break


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
        running = [
            (i, one)
            for i, one in enumerate(asked)
            if not one.is_done and one.joins_at <= self.step_count
        ]
        self.random.shuffle(running)
        rows = [self._row(i, one) for i, one in running]
        drawn = self.runner.run(rows)
        for row, (_, one), said in zip(rows, running, drawn, strict=True):
            one.take(row, said)
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
        wants_token = one.cached + len(fed) == len(one.tokens)
        guesses = one.guess(one.tokens) if one.guess is not None and wants_token else ()
        end = one.cached + len(fed) + len(guesses)
        size = self.runner.facts.block_tokens
        while len(one.blocks) * size < end:
            one.blocks.append(self.free.pop())
        return Row(
            seq_id=index,
            tokens=[*fed, *guesses],
            start=one.cached,
            blocks=one.blocks,
            sampling=one.sampling,
            seed=one.seed,
            wants_token=wants_token,
            prompt_tokens=len(one.prompt),
            known=one.tokens,
            drafts=len(guesses),
            barred=one.barred,
            barred_until=one.barred_until,
            grammar=one.grammar,
            adapter=one.adapter,
        )
