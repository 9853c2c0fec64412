"""What every runner must do. A test class inherits RunnerContract and brings a `runner` fixture."""

from dataclasses import replace

import pytest
from tests.unit.engines.toy_scheduler import GREEDY, Asked, ToyScheduler

from llmhost.core.ports import Runner
from llmhost.core.request import Sampling
from llmhost.core.step import Row

HOT = Sampling(temperature=1.0, top_p=0.95)
PROMPTS = ((3,), (5, 6, 7, 8, 9), tuple(range(2, 15)), tuple((5 * i) % 16 for i in range(37)))


def ask(*, sampling: Sampling = GREEDY, seed: int = 0, new_tokens: int = 8) -> list[Asked]:
    return [
        Asked(prompt, new_tokens, sampling, seed + place) for place, prompt in enumerate(PROMPTS)
    ]


class RunnerContract:
    """The tests; the fixture gives a runner without KV blocks and with at least 16 tokens of vocabulary."""

    def test_its_facts_make_sense(self, runner: Runner) -> None:
        facts = runner.facts
        assert facts.device == "none" or facts.device.partition(":")[2].isdigit()
        assert facts.vocab_size >= 16
        assert facts.max_sequence_length >= 64
        assert facts.block_tokens >= 1
        assert facts.kv_block_bytes >= 0
        assert facts.weights_bytes >= 0

    def test_a_step_without_rows_draws_nothing(self, runner: Runner) -> None:
        assert runner.run([]) == []

    def test_each_row_has_one_entry_and_a_token_only_where_it_wants_one(
        self, runner: Runner
    ) -> None:
        runner.set_kv_blocks(16)
        size = runner.facts.block_tokens
        wants = (True, False, True, False)
        rows = [
            Row(i, prompt[:size], 0, [i], GREEDY, 0, wanted)
            for i, (prompt, wanted) in enumerate(zip(PROMPTS, wants, strict=True))
        ]
        drawn = runner.run(rows)
        assert [token is not None for token in drawn] == list(wants)
        assert all(0 <= token < runner.facts.vocab_size for token in drawn if token is not None)
        assert runner.run([row._replace(wants_token=False) for row in rows]) == [None] * 4

    @pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "sampled"])
    @pytest.mark.parametrize("chunk", [1, 3, 16])
    def test_chunking_does_not_change_tokens(
        self, runner: Runner, sampling: Sampling, chunk: int
    ) -> None:
        whole = ToyScheduler(runner).answer(*ask(sampling=sampling))
        assert ToyScheduler(runner, chunk=chunk).answer(*ask(sampling=sampling)) == whole

    @pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "sampled"])
    def test_the_batch_does_not_change_tokens(self, runner: Runner, sampling: Sampling) -> None:
        alone = [ToyScheduler(runner).answer(one)[0] for one in ask(sampling=sampling)]
        joining = [
            replace(one, joins_at=3 * place) for place, one in enumerate(ask(sampling=sampling))
        ]
        assert ToyScheduler(runner, chunk=5, shuffle_seed=9).answer(*joining) == alone

    def test_the_same_seed_gives_the_same_tokens(self, runner: Runner) -> None:
        once = ToyScheduler(runner).answer(*ask(sampling=HOT, seed=4))
        assert ToyScheduler(runner).answer(*ask(sampling=HOT, seed=4)) == once

    def test_an_answer_goes_on_elsewhere_as_it_would_have_here(self, runner: Runner) -> None:
        whole = ToyScheduler(runner).answer(*ask(sampling=HOT))
        scheduler = ToyScheduler(runner, chunk=4)
        asked = ask(sampling=HOT)
        for _ in range(12):
            scheduler.step(asked)
        for one in asked:
            scheduler.release(one)
        assert scheduler.answer(*asked) == whole

    def test_closing_twice_is_as_closing_once(self, runner: Runner) -> None:
        runner.set_kv_blocks(4)
        runner.close()
        runner.close()
