"""Guessed or not, tokens are drawn as the model says: thousands of draws against the distribution itself."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tests.unit.engines.checkpoints import save_checkpoint
from tests.unit.engines.guessing import Scripted, say
from tests.unit.schedule.kit import a_spec

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.sampling import Sampling
from llmhost.engines.torch.load import load_runner

pytestmark = pytest.mark.bars

PROMPT = (3, 1, 4, 1, 5)
IDS = (7, 20, 33, 90)
SEEDS = 640
LARGEST_CHI_SQUARE = 30.0
"""With 15 degrees of freedom a right sampler is above this once in 85 times; the seeds are fixed."""


def pair_shares(folder: Path) -> dict[tuple[int, int], float]:
    """How likely each pair of second and third token is, by transformers and arithmetic."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    shares = dict.fromkeys([(b, c) for b in IDS for c in IDS], 0.0)

    def following(*said: int) -> dict[int, float]:
        with torch.inference_mode():
            logits = model(torch.tensor([[*PROMPT, *said]])).logits[0, -1, list(IDS)]
        return dict(zip(IDS, (logits / 6).softmax(-1).tolist(), strict=True))

    for a, first in following().items():
        for b, second in following(a).items():
            for c, third in following(a, b).items():
                shares[b, c] += first * second * third
    return shares


@pytest.mark.parametrize("guess", [(20, 90, 33), (7, 201)], ids=str)
def test_tokens_drawn_behind_guesses_have_the_models_own_distribution(
    tmp_path: Path, guess: tuple[int, ...], bar: Callable[[str], None]
):
    folder = save_checkpoint(tmp_path, "llama")
    runner = load_runner(folder, block_tokens=16, options=TorchOptions())
    sampling = Sampling(temperature=6.0, allowed_token_ids=IDS)
    counts: Counter[tuple[int, int]] = Counter()
    for first in range(0, SEEDS, 64):
        seeds = range(first, min(first + 64, SEEDS))
        asked = [a_spec(PROMPT, sampling=sampling, seed=s, max_new_tokens=4) for s in seeds]
        said = say(runner, asked, Scripted(lambda _: guess))
        counts.update((answer[1], answer[2]) for answer in said.answers)

    expected = {pair: share * SEEDS for pair, share in pair_shares(folder).items()}
    chi_square = sum((counts[pair] - e) ** 2 / e for pair, e in expected.items())
    bar(
        f"behind guesses of {guess}: chi square {chi_square:.1f} over {len(expected)} pairs of {SEEDS}"
        f" (at most {LARGEST_CHI_SQUARE:.0f})"
    )
    assert sum(counts.values()) == SEEDS
    assert min(expected.values()) > 5
    assert chi_square < LARGEST_CHI_SQUARE, chi_square
