"""What every runner that pools must do. A test class inherits PoolingContract and brings a `runner` fixture."""

import random
from collections.abc import Sequence

import pytest

from llmhost.core.errors import EngineFailed
from llmhost.core.ports import Runner
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import Pooling
from llmhost.core.step import Draw, Row

TEXTS = ((3,), (5, 6, 7, 8, 9), tuple(range(3, 40)), (9, 8, 7), (5, 6, 7, 8, 9, 10))


def row(runner: Runner, tokens: Sequence[int], **pooling: object) -> Row:
    wanted = Pooling(runner.facts.task, **pooling)  # type: ignore[arg-type]
    return Row(1, tokens, 0, [], Sampling(), 0, True, pooling=wanted)


def pooled(runner: Runner, rows: Sequence[Row]) -> list[list[float]]:
    drawn = runner.run(rows)
    assert all(isinstance(one, Draw) and one.pooled is not None for one in drawn), drawn
    return [list(one.pooled) for one in drawn]  # type: ignore[union-attr,arg-type]


class PoolingContract:
    """The tests; the fixture gives a runner with at least 64 tokens of vocabulary."""

    def test_its_facts_make_sense(self, runner: Runner) -> None:
        facts = runner.facts
        assert facts.task in ("embed", "classify")
        assert facts.pooled_size >= 1
        assert len(facts.labels) == (facts.pooled_size if facts.task == "classify" else 0)
        assert facts.kv_block_bytes == 0
        assert facts.max_sequence_length >= 64

    def test_a_step_without_rows_draws_nothing(self, runner: Runner) -> None:
        assert runner.run([]) == []

    def test_each_text_has_as_many_numbers_as_the_facts_say(self, runner: Runner) -> None:
        found = pooled(runner, [row(runner, text) for text in TEXTS])
        assert [len(numbers) for numbers in found] == [runner.facts.pooled_size] * len(TEXTS)

    def test_neither_company_nor_order_changes_a_text(self, runner: Runner) -> None:
        alone = [pooled(runner, [row(runner, text)])[0] for text in TEXTS]
        order = random.Random(3).sample(range(len(TEXTS)), len(TEXTS))

        together = pooled(runner, [row(runner, TEXTS[i]) for i in order])

        for i, numbers in zip(order, together, strict=True):
            assert numbers == pytest.approx(alone[i], abs=1e-5)

    def test_a_raw_one_has_as_many_numbers(self, runner: Runner) -> None:
        [plain, raw] = pooled(runner, [row(runner, TEXTS[2]), row(runner, TEXTS[2], is_raw=True)])
        assert len(plain) == len(raw)

    def test_rows_that_are_no_whole_text_for_it_fail_alone(self, runner: Runner) -> None:
        good = row(runner, TEXTS[1])
        other = "classify" if runner.facts.task == "embed" else "embed"
        wrong = [
            good._replace(pooling=None),
            good._replace(start=2),
            good._replace(wants_token=False),
            good._replace(pooling=Pooling(other)),
        ]

        drawn = runner.run([good, *wrong, good])

        failed = [isinstance(one, EngineFailed) for one in drawn]
        assert failed == [False, True, True, True, True, False]

    def test_kv_blocks_are_nothing_to_it(self, runner: Runner) -> None:
        before = pooled(runner, [row(runner, TEXTS[1])])
        runner.set_kv_blocks(7)
        runner.set_host_blocks(3)
        runner.move_blocks([])
        runner.set_kv_blocks(0)
        assert pooled(runner, [row(runner, TEXTS[1])]) == before

    def test_closing_twice_is_as_closing_once(self, runner: Runner) -> None:
        runner.close()
        runner.close()
