"""Greedy answers in float32 are those of transformers' own generate, whatever way they are asked for.

A few families with everything that attention can have; `make bars` does the same for all of them.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tests.unit.engines.checkpoints import VOCAB
from tests.unit.engines.parity import NEAR_TIE, NEW_TOKENS, WAYS, prompts, reference
from tests.unit.engines.toy_scheduler import Asked, ToyScheduler

from llmhost.config.schema.engines import TorchOptions
from llmhost.engines.torch.load import load_runner
from llmhost.engines.torch.runner import TorchRunner

Load = Callable[..., TorchRunner]
Checkpoint = Callable[[str], Path]

FAMILIES = ["llama", "mistral_window", "gemma2", "gpt_oss"]


@pytest.fixture(scope="module")
def loaded(checkpoint: Checkpoint) -> Callable[[str], TorchRunner]:
    """Once for all ways of asking: each gives a runner new KV blocks."""
    return cache(
        lambda family: load_runner(checkpoint(family), block_tokens=16, options=TorchOptions())
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_is_worth_comparing_with(family: str, checkpoint: Checkpoint) -> None:
    right = reference(checkpoint(family))
    assert len({token for answer in right.answers for token in answer}) > 40
    assert sum(gap < NEAR_TIE for gaps in right.gaps for gap in gaps) <= 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_generate(
    family: str, way: str, loaded: Callable[[str], TorchRunner], checkpoint: Checkpoint
) -> None:
    score = WAYS[way](loaded(family), reference(checkpoint(family)))
    assert score.wrong == []
    assert score.ties == 0


@pytest.mark.parametrize(("block_tokens", "chunk"), [(8, 3), (8, 64), (16, 13), (32, 13)])
def test_in_mixed_steps_of_any_grain(
    block_tokens: int, chunk: int, load: Load, checkpoint: Checkpoint
) -> None:
    runner = load("mistral_window", block_tokens=block_tokens)
    asked = [Asked(prompt, NEW_TOKENS, joins_at=4 * i) for i, prompt in enumerate(prompts())]
    answers = ToyScheduler(runner, chunk=chunk, shuffle_seed=chunk).answer(*asked)
    assert reference(checkpoint("mistral_window")).score(answers).wrong == []


def test_in_a_batch_with_very_uneven_lengths(load: Load, checkpoint: Checkpoint) -> None:
    runner = load("llama", block_tokens=8)
    crowd = [Asked([place % VOCAB], 80) for place in range(24)]
    asked = [Asked(prompt, NEW_TOKENS) for prompt in prompts()]
    answers = ToyScheduler(runner, blocks=400).answer(*crowd, *asked)[len(crowd) :]
    assert reference(checkpoint("llama")).score(answers).wrong == []
