"""What is drawn against what is asked for: counts of many draws beside the distribution by its definition."""

from collections.abc import Callable

import pytest
import torch
from tests.unit.engines.reference_sampling import (
    ANSWER,
    PROMPT,
    SETTINGS,
    distance,
    distribution,
)

from llmhost.core.step import Draw, Row
from llmhost.engines.torch.sampler import sample

pytestmark = pytest.mark.bars

DRAWS = 20_000
MOST_DEVIATIONS = 4.0
VOCABULARY = 400
LOGITS = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(8)) * 2
KNOWN = [*PROMPT, *ANSWER]


def rows(name: str, seed: int, **changes: object) -> list[Row]:
    """As many rows as draws are made, which differ in their seeds."""
    at = len(KNOWN)
    plain = Row(0, KNOWN[-1:], at - 1, (0,), SETTINGS[name], 0, True)
    plain = plain._replace(known=KNOWN, prompt_tokens=len(PROMPT))
    return [plain._replace(seed=seed * DRAWS + i, **changes) for i in range(DRAWS)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SETTINGS)
def test_draws_follow_the_distribution_that_is_asked_for(
    name: str, bar: Callable[[str], None]
) -> None:
    expected = distribution(LOGITS.tolist(), SETTINGS[name], KNOWN, len(PROMPT))
    drawn = sample(LOGITS.expand(DRAWS, -1), rows(name, 1))

    tokens = [token for token in drawn if isinstance(token, int)]
    found, freedom = distance(tokens, expected)
    bar(f"{name}: {DRAWS:,} draws over {freedom + 1} cells are {found:+.2f} deviations off")
    assert len(tokens) == DRAWS
    assert abs(found) < MOST_DEVIATIONS


@pytest.mark.parametrize("name", ["temperature 1", "top_p 0.8", "all at once"])
@pytest.mark.parametrize("guess", ["likeliest", "unlikely"])
def test_guesses_leave_the_distribution_as_it_is(
    name: str, guess: str, bar: Callable[[str], None]
) -> None:
    """Of the first token, and of the second after a guess that was right."""
    expected = distribution(LOGITS.tolist(), SETTINGS[name], KNOWN, len(PROMPT))
    order = expected.argsort()[::-1]
    guessed = int(order[0] if guess == "likeliest" else order[6])
    speculating = rows(name, 2, tokens=[KNOWN[-1], guessed], drafts=1)
    answers = sample(LOGITS.expand(2 * DRAWS, -1), speculating)

    said = [
        (one,) if isinstance(one, int) else one.tokens
        for one in answers
        if isinstance(one, int | Draw)
    ]
    first, _ = distance([tokens[0] for tokens in said], expected)
    after = distribution(LOGITS.tolist(), SETTINGS[name], [*KNOWN, guessed], len(PROMPT))
    second_tokens = [tokens[1] for tokens in said if len(tokens) == 2]
    second, _ = distance(second_tokens, after)
    right = len(second_tokens) / DRAWS
    bar(
        f"{name}, guessing the {guess}: right {right:.3f} of the time where its probability is"
        f" {expected[guessed]:.3f}; first tokens {first:+.2f}, second tokens {second:+.2f} deviations off"
    )
    assert len(said) == DRAWS
    assert all(len(tokens) == 1 + (tokens[0] == guessed) for tokens in said)
    assert abs(first) < MOST_DEVIATIONS
    assert abs(second) < MOST_DEVIATIONS
