"""Models that no file describes: the same form as what a checkpoint of that shape gives."""

import torch

from llmhost.core.sampling import Sampling
from llmhost.core.step import Row
from llmhost.engines.torch.bench import model_work
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


def test_a_random_model_may_have_narrow_weights_and_a_narrow_cache():
    plain = random_runner(SHAPE, device=torch.device("cpu"))
    narrow = random_runner(SHAPE, device=torch.device("cpu"), weights="fp8", kv_dtype="fp8")

    before, after = model_work(plain), model_work(narrow)

    assert narrow.facts.kv_block_bytes * 4 == plain.facts.kv_block_bytes
    assert narrow.facts.weights_bytes < 0.7 * plain.facts.weights_bytes
    assert after.weights_bytes < 0.6 * before.weights_bytes
    assert after.token_flops == before.token_flops
