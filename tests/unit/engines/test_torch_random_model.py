"""Models that no file describes: the same form as what a checkpoint of that shape gives."""

import torch

from llmhost.core.request import Sampling
from llmhost.core.step import Row
from llmhost.engines.torch.random_model import RandomShape, random_runner

SHAPE = RandomShape(layers=2, hidden=64, ffn=96, heads=4, kv_heads=2, vocab=200, dtype="float32")


def test_a_random_model_is_made_without_files_and_runs():
    runner = random_runner(SHAPE, device=torch.device("cpu"))
    runner.set_kv_blocks(2)

    (drawn,) = runner.run([Row(0, [1, 2, 3], 0, [1], Sampling(temperature=0.0), 0, True)])

    assert isinstance(drawn, int)
    assert (runner.facts.vocab_size, runner.facts.block_tokens) == (200, 16)
    assert runner.facts.weights_bytes > 4 * 2 * 200 * 64


def test_a_seed_decides_all_weights_of_a_random_model():
    made = [random_runner(SHAPE, device=torch.device("cpu"), seed=seed) for seed in (3, 3, 4)]

    first, same, other = (runner._model.lm_head.weight for runner in made)
    assert first.equal(same)
    assert not first.equal(other)
