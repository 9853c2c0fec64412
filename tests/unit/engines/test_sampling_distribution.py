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


@pytest.mark.parametrize("name", SETTINGS)
def test_draws_follow_the_distribution_that_is_asked_for(name: str) -> None:
    known = [*PROMPT, *ANSWER]
    expected = distribution(LOGITS.tolist(), SETTINGS[name], known, len(PROMPT))
    row = Row(0, known[-1:], len(known) - 1, (0,), SETTINGS[name], 0, True)
    row = row._replace(known=known, prompt_tokens=len(PROMPT))
    drawn = sample(LOGITS.expand(DRAWS, -1), [row._replace(seed=i) for i in range(DRAWS)])
    found, _ = distance([token for token in drawn if isinstance(token, int)], expected)
    assert abs(found) < 4


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
