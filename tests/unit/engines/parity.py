"""Whether the torch engine gives the tokens that transformers' own generate gives, whatever way they are asked for.

Answers are greedy and in float32. Where the reference's two best logits are closer than NEAR_TIE another token is
no error, but it is counted.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.unit.engines.checkpoints import VOCAB
from tests.unit.engines.toy_scheduler import Asked, ToyScheduler
from tests.unit.schedule.kit import SpelledWatch, a_spec

from llmhost.core.sequence import SequenceSpec
from llmhost.core.step import Row, StepResult, split_exactly, work_units
from llmhost.engines.torch.runner import TorchRunner
from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.scheduler import Emission, Scheduler

NEW_TOKENS = 24
NEAR_TIE = 1e-4
LENGTHS = (1, 2, 7, 16, 31, 70, 130)

Answers = list[list[int]]


@dataclass(slots=True)
class Score:
    """What a comparison found."""

    tokens: int = 0
    ties: int = 0
    """Answers that left the reference at a near-tie."""
    wrong: list[str] = field(default_factory=list)
    """Where they left it elsewhere."""

    def __iadd__(self, other: "Score") -> "Score":
        self.tokens += other.tokens
        self.ties += other.ties
        self.wrong += other.wrong
        return self


@cache
def prompts() -> list[list[int]]:
    numbers = random.Random(3)
    return [[numbers.randrange(3, VOCAB) for _ in range(length)] for length in LENGTHS]


@dataclass(frozen=True, slots=True)
class Reference:
    """generate's answers to `prompts()`, and the gaps between its two best logits."""

    answers: Answers
    gaps: list[list[float]]

    def score(self, answers: Iterable[Sequence[int]], of: Iterable[int] | None = None) -> Score:
        """Compare `answers` with those to the prompts `of`, or to all of them. Shorter ones are compared as far as
        they go."""
        score = Score()
        for place, ours in zip(of or range(len(self.answers)), answers, strict=True):
            score.tokens += len(ours)
            pairs = enumerate(zip(ours, self.answers[place], strict=False))
            first = next((i for i, (one, other) in pairs if one != other), None)
            if first is None:
                continue
            gap = self.gaps[place][first]
            if gap < NEAR_TIE:
                score.ties += 1
            else:
                score.wrong.append(f"prompt {place}, token {first}, at a gap of {gap:.2g}")
        return score


@cache
def reference(folder: Path) -> Reference:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return reference_of(model)


def reference_of(model: Any) -> Reference:
    answers, gaps = [], []
    for prompt in prompts():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        answers.append(out.sequences[0, len(prompt) :].tolist())
        best = torch.cat(out.logits).topk(2).values
        gaps.append((best[:, 0] - best[:, 1]).tolist())
    return Reference(answers, gaps)


# ---------------------------------------------------------------- the engine's scheduler, without its threads

Guess = Callable[[Sequence[int], int], Sequence[int]]
"""What comes after these tokens, at most so many."""


class Desk:
    """The real scheduler over a torch runner, step by step."""

    def __init__(
        self,
        runner: TorchRunner,
        *,
        kv_blocks: int = 200,
        sequences: int = 16,
        tokens: int = 512,
        prefix_cache: bool = False,
        guess: Guess | None = None,
    ) -> None:
        runner.set_kv_blocks(kv_blocks)
        self.runner = runner
        self.guess = guess
        self.scheduler = Scheduler(
            SchedulerLimits(
                max_batch_size=sequences,
                max_tokens_per_batch=tokens,
                max_sequence_length=runner.facts.max_sequence_length,
                kv_blocks=kv_blocks,
                block_tokens=runner.facts.block_tokens,
                prefix_cache=prefix_cache,
            )
        )
        self.said: dict[int, list[int]] = {}
        self.most_rows = 0
        self.cached_tokens = 0
        """Of all prompts that ended."""
        self.confirmed = 0
        """Guesses that turned out right."""

    def add(self, prompt: Sequence[int], **changes: object) -> int:
        seq_id = len(self.said) + 1
        self.said[seq_id] = []
        spec: SequenceSpec = a_spec(prompt, max_new_tokens=NEW_TOKENS, **changes)
        assert self.scheduler.add(seq_id, spec, SpelledWatch()) is None
        return seq_id

    def step(self) -> None:
        if self.guess is not None:
            asks = self.scheduler.draft_asks(4)
            self.scheduler.set_drafts(
                {ask.seq_id: self.guess(ask.tokens, ask.most) for ask in asks}
            )
        rows = self.scheduler.plan()
        if not rows:
            return
        self.most_rows = max(self.most_rows, len(rows))
        shares = split_exactly(1000, [work_units(row) for row in rows])
        drawn = self.runner.run(rows)
        self._hear(self.scheduler.absorb(StepResult(rows, drawn, 0, 1000, shares)), rows)
        self.scheduler.check()

    def finish(self) -> Answers:
        """Run until all have ended; what each of them said."""
        while self.scheduler.has_work:
            self.step()
        return list(self.said.values())

    def _hear(self, emissions: list[Emission], rows: Sequence[Row]) -> None:
        guesses = {row.seq_id: row.drafts for row in rows}
        for seq_id, delta in emissions:
            assert delta.error is None, delta.error
            self.said[seq_id] += delta.tokens
            if guesses.get(seq_id):
                self.confirmed += len(delta.tokens) - 1
            if delta.usage is not None:
                self.cached_tokens += delta.usage.cached_tokens


# ---------------------------------------------------------------- the ways


def alone(runner: TorchRunner, right: Reference) -> Score:
    answers = [ToyScheduler(runner).answer(Asked(prompt, NEW_TOKENS))[0] for prompt in prompts()]
    return right.score(answers)


def in_mixed_steps(runner: TorchRunner, right: Reference) -> Score:
    """Decode rows beside chunks that start anywhere, sequences joining late, shuffled blocks and rows."""
    asked = [Asked(prompt, NEW_TOKENS, joins_at=4 * i) for i, prompt in enumerate(prompts())]
    return right.score(ToyScheduler(runner, chunk=13).answer(*asked))


def in_a_crowd_of_16(runner: TorchRunner, right: Reference) -> Score:
    """Always about 16 at a time, arriving one by one; every third is cancelled amid its answer."""
    desk = Desk(runner)
    of, leaving = [], {}
    for arrival in range(3 * len(LENGTHS) + 6):
        of.append(arrival % len(LENGTHS))
        seq_id = desk.add(prompts()[of[-1]])
        if arrival % 3 == 2:
            leaving[arrival + 6] = seq_id
        desk.step()
        if arrival in leaving:
            desk.scheduler.cancel(leaving[arrival])
    answers = desk.finish()
    assert desk.most_rows == 16
    return right.score(answers, of)


def in_chunks_of_16(runner: TorchRunner, right: Reference) -> Score:
    desk = Desk(runner, tokens=16)
    for prompt in prompts():
        desk.add(prompt)
    return right.score(desk.finish())


def after_prefix_hits(runner: TorchRunner, right: Reference) -> Score:
    """What was said before, and prompts that go on from a part of it, are found in the cache."""
    desk = Desk(runner, prefix_cache=True)
    longest = prompts()[-1]
    for count in (40, 100):
        desk.add([*longest[:count], 7, 9])
    desk.finish()
    for _ in range(2):
        for prompt in prompts():
            desk.add(prompt)
        desk.finish()
    assert desk.cached_tokens > sum(LENGTHS) // 2
    answers = list(desk.said.values())[2:]
    return right.score(answers, [*range(len(LENGTHS))] * 2)


def after_preemption(runner: TorchRunner, right: Reference) -> Score:
    size = runner.facts.block_tokens
    blocks = -(-(max(LENGTHS) + NEW_TOKENS) // size) + 4
    desk = Desk(runner, kv_blocks=blocks)
    for prompt in prompts():
        desk.add(prompt)
    answers = desk.finish()
    assert desk.scheduler.preemptions > 0
    return right.score(answers)


def four_choices(runner: TorchRunner, right: Reference) -> Score:
    """n = 4: the choices of a request share their prompt's blocks and then part."""
    desk = Desk(runner)
    of = [place for place in range(len(LENGTHS)) for _ in range(4)]
    for number, place in enumerate(of):
        desk.add(prompts()[place], request_id=f"r{place}", index=number % 4, seed=number)
    answers = desk.finish()
    assert desk.cached_tokens > 3 * max(LENGTHS) // 2
    return right.score(answers, of)


def with_guesses(runner: TorchRunner, right: Reference) -> Score:
    """Guesses at what comes next: right ones, wrong ones, and ones that are right at first."""
    numbers = random.Random(5)
    texts = [[*prompt, *answer] for prompt, answer in zip(prompts(), right.answers, strict=True)]

    def guess(tokens: Sequence[int], most: int) -> Sequence[int]:
        known = next((text for text in texts if text[: len(tokens)] == list(tokens)), [])
        coming = known[len(tokens) : len(tokens) + most]
        if coming and numbers.random() < 0.5:
            place = numbers.randrange(len(coming))
            coming[place] = (coming[place] + 1) % VOCAB
        return coming

    desk = Desk(runner, guess=guess)
    for prompt in prompts():
        desk.add(prompt)
    answers = desk.finish()
    assert desk.confirmed > NEW_TOKENS
    return right.score(answers)


def under_ceilings(runner: TorchRunner, right: Reference) -> Score:
    """Tokens are paid for a few at a time, amid guesses that are right, and in too few blocks for all."""
    numbers = random.Random(6)
    texts = [[*prompt, *answer] for prompt, answer in zip(prompts(), right.answers, strict=True)]

    def guess(tokens: Sequence[int], most: int) -> Sequence[int]:
        known = next((text for text in texts if text[: len(tokens)] == list(tokens)), [])
        return known[len(tokens) : len(tokens) + most]

    blocks = -(-(max(LENGTHS) + NEW_TOKENS) // runner.facts.block_tokens) + 4
    desk, held = Desk(runner, kv_blocks=blocks, guess=guess), {}
    for prompt in prompts():
        held[desk.add(prompt, held_tokens=1)] = 1
    while desk.scheduler.has_work:
        desk.step()
        for seq_id in held:
            assert len(desk.said[seq_id]) <= held[seq_id], "a token that is not paid for"
            if numbers.random() < 0.3:
                held[seq_id] += numbers.randrange(1, 6)
                desk.scheduler.allow(seq_id, held[seq_id])
    return right.score(desk.said.values())


WAYS: Mapping[str, Callable[[TorchRunner, Reference], Score]] = {
    way.__name__: way
    for way in (
        alone,
        in_mixed_steps,
        in_a_crowd_of_16,
        in_chunks_of_16,
        after_prefix_hits,
        after_preemption,
        four_choices,
        with_guesses,
        under_ceilings,
    )
}
