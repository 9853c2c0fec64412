"""The stand-in for models that pool: texts with the same words are alike, and everything is known beforehand."""

import pytest
from tests.unit.engines.pooling_contract import PoolingContract

from llmhost.config.schema.engines import FakeOptions
from llmhost.config.schema.models import ModelSpec
from llmhost.core.errors import EngineFailed
from llmhost.core.ports import Runner
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import Pooling
from llmhost.core.step import Draw, Row
from llmhost.engines.fake_pooling import FakePoolingRunner, fake_scores, fake_vector
from llmhost.engines.kinds import FakeKind


class TestContract(PoolingContract):
    @pytest.fixture(params=["embed", "classify"])
    def runner(self, request: pytest.FixtureRequest) -> Runner:
        return FakePoolingRunner(FakeOptions(task=request.param, labels=("a", "b")))


def row(tokens: list[int], task: str | None = "embed", second_from: int | None = None) -> Row:
    pooling = None if task is None else Pooling(task, second_from)
    return Row(1, tokens, 0, [], Sampling(), 0, True, pooling=pooling)


def test_the_runner_says_what_the_oracle_says() -> None:
    runner = FakePoolingRunner(FakeOptions(task="embed"))

    [drawn, wrong, none] = runner.run([row([1, 2, 3]), row([1], "classify"), row([1], None)])

    assert isinstance(drawn, Draw) and drawn.pooled is not None
    assert list(drawn.pooled) == pytest.approx(fake_vector([1, 2, 3]))
    assert isinstance(wrong, EngineFailed) and isinstance(none, EngineFailed)
    assert runner.facts.pooled_size == len(drawn.pooled)


def test_texts_that_share_words_are_alike() -> None:
    def cosine(one: list[int], other: list[int]) -> float:
        return sum(a * b for a, b in zip(fake_vector(one), fake_vector(other), strict=True))

    assert cosine([1, 2, 3], [3, 2, 1]) == pytest.approx(1)
    assert cosine([1, 2, 3], [1, 2, 9]) > cosine([1, 2, 3], [7, 8, 9]) + 0.3


def test_a_pair_is_scored_by_the_words_that_both_have() -> None:
    assert fake_scores([1, 2, 2, 9], 2, 1) == [0.5]
    assert fake_scores([1, 2, 3, 4], None, 2) == [0.5, 0.5]


def test_the_kind_takes_the_runner_that_the_options_name() -> None:
    spec = ModelSpec(engine="fake", options={"task": "classify", "labels": ["a", "b"]})
    facts = FakeKind().footprint(spec, None)
    assert (facts.task, facts.labels, facts.kv_block_bytes) == ("classify", ("a", "b"), 0)


def test_delays_are_those_asked_for() -> None:
    slept: list[float] = []
    options = FakeOptions(task="embed", prefill_delay_ms=30, token_delay_ms=5)
    runner = FakePoolingRunner(options, sleep=slept.append)
    runner.run([row([1])])
    runner.close()
    assert slept == [0.035]
