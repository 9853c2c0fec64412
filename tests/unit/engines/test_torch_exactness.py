"""Greedy answers in float32 are those of transformers' own generate, whatever else is in the batch."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from tests.unit.engines.checkpoints import VOCAB
from tests.unit.engines.toy_scheduler import Asked, ToyScheduler

from llmhost.engines.torch.runner import TorchRunner

NEW_TOKENS = 24
NEAR_TIE = 1e-4
"""Where the reference's two best logits are closer than this, another token is no error, but it is counted."""
LENGTHS = (1, 2, 7, 16, 31, 70, 130)

Load = Callable[..., TorchRunner]
Checkpoint = Callable[[str], Path]


@cache
def prompts() -> list[list[int]]:
    numbers = random.Random(3)
    return [[numbers.randrange(VOCAB) for _ in range(length)] for length in LENGTHS]


@cache
def reference(folder: Path) -> tuple[list[list[int]], list[list[float]]]:
    """generate's tokens, and the gaps between its two best logits."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    answers, gaps = [], []
    for prompt in prompts():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        answers.append(out.sequences[0, len(prompt) :].tolist())
        best = torch.cat(out.logits).topk(2).values
        gaps.append((best[:, 0] - best[:, 1]).tolist())
    return answers, gaps


def differing_at_near_ties(folder: Path, answers: list[list[int]]) -> int:
    """How many answers leave the reference at a near-tie. One that leaves it elsewhere fails the test."""
    ties = 0
    for ours, theirs, gaps in zip(answers, *reference(folder), strict=True):
        first = next(
            (i for i, pair in enumerate(zip(ours, theirs, strict=True)) if len(set(pair)) > 1), None
        )
        if first is not None:
            assert gaps[first] < NEAR_TIE, f"token {first} differs at a gap of {gaps[first]}"
            ties += 1
    return ties


FAMILIES = ["llama", "qwen3", "qwen2", "mistral_window", "gemma2", "gpt2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_is_worth_comparing_with(family: str, checkpoint: Checkpoint) -> None:
    answers, gaps = reference(checkpoint(family))
    assert len({token for answer in answers for token in answer}) > 40
    assert sum(gap < NEAR_TIE for one in gaps for gap in one) <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_alone(family: str, load: Load, checkpoint: Checkpoint) -> None:
    runner = load(family, block_tokens=16)
    answers = [ToyScheduler(runner).answer(Asked(prompt, NEW_TOKENS))[0] for prompt in prompts()]
    assert differing_at_near_ties(checkpoint(family), answers) == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block_tokens", [8, 16])
@pytest.mark.parametrize("chunk", [3, 13, 64])
def test_in_mixed_steps(
    family: str, block_tokens: int, chunk: int, load: Load, checkpoint: Checkpoint
) -> None:
    """Decode rows beside chunks that start anywhere, sequences joining and leaving, shuffled blocks and rows."""
    runner = load(family, block_tokens=block_tokens)
    asked = [Asked(prompt, NEW_TOKENS, joins_at=4 * i) for i, prompt in enumerate(prompts())]
    answers = ToyScheduler(runner, chunk=chunk, shuffle_seed=chunk).answer(*asked)
    assert differing_at_near_ties(checkpoint(family), answers) == 0


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_in_a_batch_with_very_uneven_lengths(
    family: str, load: Load, checkpoint: Checkpoint
) -> None:
    runner = load(family, block_tokens=8)
    crowd = [Asked([place % VOCAB], 80) for place in range(24)]
    asked = [Asked(prompt, NEW_TOKENS) for prompt in prompts()]
    answers = ToyScheduler(runner, blocks=400).answer(*crowd, *asked)[len(crowd) :]
    assert differing_at_near_ties(checkpoint(family), answers) == 0
