"""Draws against the distribution by its definition; many more draws are made in tests/bars/test_sampling.py."""

import numpy as np
import pytest
import torch
from tests.unit.engines.reference_sampling import (
    ANSWER,
    PROMPT,
    SETTINGS,
    distance,
    distribution,
)

from llmhost.core.step import Row
from llmhost.engines.torch.sampler import sample

DRAWS = 1500
LOGITS = torch.randn(400, generator=torch.Generator().manual_seed(4)) * 2


def deviations(name: str, device: str) -> float:
    """How far draws are from what a setting asks for."""
    known = [*PROMPT, *ANSWER]
    expected = distribution(LOGITS.tolist(), SETTINGS[name], known, len(PROMPT))
    row = Row(0, known[-1:], len(known) - 1, (0,), SETTINGS[name], 0, True)
    row = row._replace(known=known, prompt_tokens=len(PROMPT))
    logits = LOGITS.to(device).expand(DRAWS, -1)
    drawn = sample(logits, [row._replace(seed=i) for i in range(DRAWS)])
    found, _ = distance([token for token in drawn if isinstance(token, int)], expected)
    return abs(found)


@pytest.mark.parametrize("name", SETTINGS)
def test_draws_follow_the_distribution_that_is_asked_for(name: str) -> None:
    assert deviations(name, "cpu") < 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_draws_on_a_gpu_follow_it_too() -> None:
    assert max(deviations(name, "cuda") for name in SETTINGS) < 4


def test_the_distance_finds_what_is_wrong() -> None:
    """A little more of one token, and one token that should not be there."""
    expected = np.full(20, 0.05)
    random = np.random.default_rng(5)
    fine = random.choice(20, 20_000, p=expected)
    assert abs(distance(fine.tolist(), expected)[0]) < 4
    bent = expected * 0.98
    bent[3] += 0.02
    assert distance(random.choice(20, 20_000, p=bent).tolist(), expected)[0] > 4
    assert distance([19], np.eye(20)[3])[0] == float("inf")
