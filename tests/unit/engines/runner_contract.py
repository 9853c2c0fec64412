"""What every runner must do. A test class inherits RunnerContract and brings a `runner` fixture."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.unit.engines.toy_scheduler import GREEDY, Asked, Guesser, ToyScheduler

from llmhost.core.errors import EngineFailed
from llmhost.core.grammar import GrammarSpec
from llmhost.core.ports import Runner
from llmhost.core.sampling import Sampling
from llmhost.core.step import Row
from llmhost.text.words import WordTokenizer

HOT = Sampling(temperature=1.0, top_p=0.95)
PROMPTS = ((3,), (5, 6, 7, 8, 9), tuple(range(2, 15)), tuple((5 * i) % 16 for i in range(37)))
EVERYTHING = {
    "greedy": GREEDY,
    "hot": HOT,
    "top_k": Sampling(top_k=3),
    "min_p": Sampling(temperature=1.5, min_p=0.05),
    "penalties": Sampling(
        temperature=0.0, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.4
    ),
    "hot_penalties": Sampling(repetition_penalty=1.5, frequency_penalty=0.3),
    "bias": Sampling(logit_bias=((4, 5.0), (7, -100.0))),
    "allowed": Sampling(temperature=0.7, allowed_token_ids=(1, 2, 3, 5, 8, 13)),
    "bad_words": Sampling(top_p=0.9, bad_words=((4,), (1, 2), (3, 1, 2))),
    "logprobs": Sampling(temperature=0.8, logprobs=2),
    "prompt_logprobs": Sampling(temperature=0.0, prompt_logprobs=1),
}
"""A sampling of every sort."""


def ask(*, sampling: Sampling = GREEDY, seed: int = 0, new_tokens: int = 8) -> list[Asked]:
    return [
        Asked(prompt, new_tokens, sampling, seed + place) for place, prompt in enumerate(PROMPTS)
    ]


def ask_everything(new_tokens: int = 8) -> list[Asked]:
    """One sequence of every sort; their prompts differ, too."""
    return [
        Asked(PROMPTS[place % 4], new_tokens, sampling, seed=place)
        for place, sampling in enumerate(EVERYTHING.values())
    ]


def said(runner: Runner, sampling: Sampling, *, new_tokens: int = 8) -> list[list[int]]:
    """The answers to all prompts."""
    return ToyScheduler(runner).answer(*ask(sampling=sampling, new_tokens=new_tokens))


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
        whole = said(runner, sampling)
        assert ToyScheduler(runner, chunk=chunk).answer(*ask(sampling=sampling)) == whole

    @pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "sampled"])
    def test_the_batch_does_not_change_tokens(self, runner: Runner, sampling: Sampling) -> None:
        alone = [ToyScheduler(runner).answer(one)[0] for one in ask(sampling=sampling)]
        joining = [
            replace(one, joins_at=3 * place) for place, one in enumerate(ask(sampling=sampling))
        ]
        assert ToyScheduler(runner, chunk=5, shuffle_seed=9).answer(*joining) == alone

    def test_whatever_is_asked_for_the_batch_does_not_change_it(self, runner: Runner) -> None:
        alone = [ToyScheduler(runner).answer(one)[0] for one in ask_everything()]
        joining = [replace(one, joins_at=place // 2) for place, one in enumerate(ask_everything())]
        assert ToyScheduler(runner, chunk=5, shuffle_seed=9).answer(*joining) == alone

    def test_the_same_seed_gives_the_same_tokens(self, runner: Runner) -> None:
        once = ToyScheduler(runner).answer(*ask(sampling=HOT, seed=4))
        assert ToyScheduler(runner).answer(*ask(sampling=HOT, seed=4)) == once

    def test_an_answer_goes_on_elsewhere_as_it_would_have_here(self, runner: Runner) -> None:
        whole = ToyScheduler(runner).answer(*ask_everything())
        scheduler, asked = ToyScheduler(runner, chunk=4), ask_everything()
        for _ in range(12):
            scheduler.step(asked)
        for one in asked:
            scheduler.release(one)
        assert scheduler.answer(*asked) == whole

    def test_closing_twice_is_as_closing_once(self, runner: Runner) -> None:
        runner.set_kv_blocks(4)
        runner.close()
        runner.close()

    # What a request asks for.

    @pytest.mark.parametrize(
        "sampling",
        [Sampling(top_k=1), Sampling(min_p=1.0), Sampling(top_p=1e-9), Sampling(temperature=1e-9)],
        ids=["top_k", "min_p", "top_p", "temperature"],
    )
    def test_the_narrowest_filter_is_greedy(self, runner: Runner, sampling: Sampling) -> None:
        assert said(runner, sampling) == said(runner, GREEDY)

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_only_allowed_tokens_are_drawn(self, runner: Runner, temperature: float) -> None:
        allowed = (3, 9, 11)
        answers = said(runner, Sampling(temperature=temperature, allowed_token_ids=allowed))
        assert {token for answer in answers for token in answer} <= {*allowed}

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_a_great_bias_forces_a_token_and_a_great_malus_bars_it(
        self, runner: Runner, temperature: float
    ) -> None:
        forced = Sampling(temperature=temperature, logit_bias=((9, 1000.0), (10_000_000, 2000.0)))
        assert said(runner, forced) == [[9] * 8] * 4
        usual = {token for answer in said(runner, GREEDY) for token in answer}
        barred = Sampling(temperature=temperature, logit_bias=tuple((t, -1000.0) for t in usual))
        assert not usual & {token for answer in said(runner, barred) for token in answer}

    def test_a_bias_lifts_no_ban(self, runner: Runner) -> None:
        asked = Sampling(
            allowed_token_ids=(3, 4, 5), bad_words=((4,),), logit_bias=((4, 1e4), (6, 1e4))
        )
        assert {token for answer in said(runner, asked) for token in answer} <= {3, 5}

    def test_barred_tokens_are_drawn_only_from_a_position_on(self, runner: Runner) -> None:
        usual, asked, free = said(runner, GREEDY), ask(), ask()
        for answer, one, other in zip(usual, asked, free, strict=True):
            one.barred = other.barred = frozenset(answer)
            one.barred_until, other.barred_until = len(one.prompt) + 5, len(one.prompt)
        for before, after in zip(usual, ToyScheduler(runner).answer(*asked), strict=True):
            assert not {*after[:5]} & {*before}
        assert ToyScheduler(runner).answer(*free) == usual

    def test_a_bad_word_of_one_token_is_never_drawn(self, runner: Runner) -> None:
        words = {(token,) for answer in said(runner, GREEDY) for token in answer[:2]}
        answers = said(runner, replace(GREEDY, bad_words=tuple(sorted(words))))
        assert not words & {(token,) for answer in answers for token in answer}

    @pytest.mark.parametrize("length", [2, 3])
    def test_a_longer_bad_word_is_never_completed(self, runner: Runner, length: int) -> None:
        usual = said(runner, GREEDY)
        words = {tuple(answer[:length]) for answer in usual}
        answers = said(runner, replace(GREEDY, bad_words=tuple(sorted(words))))
        for before, after in zip(usual, answers, strict=True):
            assert after[: length - 1] == before[: length - 1]
            parts = {tuple(after[at : at + length]) for at in range(len(after))}
            assert not words & parts

    def test_a_bad_word_may_begin_in_the_prompt(self, runner: Runner) -> None:
        for (usual, *_), one in zip(said(runner, GREEDY), ask(), strict=True):
            one.sampling = replace(GREEDY, bad_words=((one.prompt[-1], usual), (999, usual)))
            assert ToyScheduler(runner).answer(one)[0][0] != usual

    @pytest.mark.parametrize(
        "kind", ["presence_penalty", "frequency_penalty", "repetition_penalty"]
    )
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_a_great_penalty_forbids_to_say_anything_twice(
        self, runner: Runner, kind: str, temperature: float
    ) -> None:
        asked = ask(sampling=Sampling(temperature=temperature, **{kind: 1e6}), new_tokens=12)
        for one, answer in zip(asked, ToyScheduler(runner).answer(*asked), strict=True):
            assert len({*answer}) == len(answer)
            if kind == "repetition_penalty":
                assert not {*answer} & {*one.prompt}

    def test_penalties_on_the_answer_leave_the_prompt_alone(self, runner: Runner) -> None:
        usual = [answer[0] for answer in said(runner, GREEDY)]
        asked = Sampling(temperature=0.0, presence_penalty=1e6, frequency_penalty=1e6)
        repeating = [Asked([*prompt, *prompt], 1, asked) for prompt in PROMPTS]
        plain = [Asked([*prompt, *prompt], 1) for prompt in PROMPTS]
        assert ToyScheduler(runner).answer(*repeating) == ToyScheduler(runner).answer(*plain)
        assert [answer[0] for answer in said(runner, asked)] == usual

    def test_a_row_that_may_draw_nothing_fails_alone(self, runner: Runner) -> None:
        nothing = Asked(PROMPTS[1], 4, Sampling(allowed_token_ids=()))
        barred = Sampling(allowed_token_ids=(5, 6), bad_words=((5,), (6,)))
        contrary = Asked(PROMPTS[2], 4, barred)
        fine = Asked(PROMPTS[0], 4)
        ToyScheduler(runner).answer(nothing, fine, contrary)
        assert fine.made == said(runner, GREEDY, new_tokens=4)[0]
        for one in (nothing, contrary):
            assert one.made == []
            assert isinstance(one.failure, EngineFailed)
            assert "allowed_token_ids" in one.failure.message
        assert contrary.failure is not None and "bad_words" in contrary.failure.message

    # Log probabilities.

    @pytest.mark.parametrize("top", [0, 1, 5])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_log_probabilities_are_those_of_the_drawn_tokens(
        self, runner: Runner, top: int, temperature: float
    ) -> None:
        asked = ask(sampling=Sampling(temperature=temperature, logprobs=top))
        plain = said(runner, Sampling(temperature=temperature))
        assert ToyScheduler(runner).answer(*asked) == plain
        for one in asked:
            assert [report.token for report in one.logprobs] == one.made
            for report in one.logprobs:
                assert len(report.top) == top
                values = [value for _, value in report.top]
                assert values == sorted(values, reverse=True)
                assert sum(map(math.exp, values)) <= 1.0001
                assert report.logprob <= 0.0001
                if report.rank <= top:
                    assert report.top[report.rank - 1] == (report.token, report.logprob)
                if temperature == 0.0:
                    assert report.rank == 1

    def test_log_probabilities_are_the_models_own(self, runner: Runner) -> None:
        plain = ask(sampling=replace(GREEDY, logprobs=4), new_tokens=1)
        ToyScheduler(runner).answer(*plain)
        bent = Sampling(
            temperature=2.0, top_k=2, repetition_penalty=3.0, logit_bias=((9, 1000.0),), logprobs=4
        )
        asked = ask(sampling=bent, new_tokens=1)
        ToyScheduler(runner).answer(*asked)
        for one, other in zip(asked, plain, strict=True):
            assert one.made == [9]
            assert dict(one.logprobs[0].top) == pytest.approx(dict(other.logprobs[0].top))

    def test_over_the_whole_vocabulary_probabilities_add_up_to_one(self, runner: Runner) -> None:
        size = runner.facts.vocab_size
        asked = Asked(PROMPTS[1], 1, replace(GREEDY, logprobs=size + 5))
        ToyScheduler(runner).answer(asked)
        (report,) = asked.logprobs
        assert sorted(token for token, _ in report.top) == [*range(size)]
        assert sum(math.exp(value) for _, value in report.top) == pytest.approx(1.0, abs=1e-4)

    @pytest.mark.parametrize("chunk", [1, 3, 1000])
    def test_every_prompt_token_but_the_first_is_scored_once(
        self, runner: Runner, chunk: int
    ) -> None:
        sampling = replace(GREEDY, prompt_logprobs=2)
        whole = ask(sampling=sampling)
        ToyScheduler(runner).answer(*whole)
        asked = ask(sampling=sampling)
        assert ToyScheduler(runner, chunk=chunk).answer(*asked) == said(runner, GREEDY)
        for one, other in zip(asked, whole, strict=True):
            assert [report.token for report in one.prompt_logprobs] == [*one.prompt[1:]]
            assert all(len(report.top) == 2 for report in one.prompt_logprobs)
            assert [r.rank for r in one.prompt_logprobs] == [r.rank for r in other.prompt_logprobs]
            found = [report.logprob for report in one.prompt_logprobs]
            assert found == pytest.approx([r.logprob for r in other.prompt_logprobs], abs=1e-3)

    def test_a_text_is_worth_the_same_as_answer_and_as_prompt(self, runner: Runner) -> None:
        asked = ask(sampling=Sampling(logprobs=1))
        ToyScheduler(runner).answer(*asked)
        for one in asked:
            again = Asked(one.tokens, 1, Sampling(prompt_logprobs=1))
            ToyScheduler(runner).answer(again)
            tail = again.prompt_logprobs[len(one.prompt) - 1 :]
            assert [report.token for report in tail] == one.made
            values = [report.logprob for report in one.logprobs]
            assert [report.logprob for report in tail] == pytest.approx(values, abs=1e-3)

    # Guesses.

    @pytest.mark.parametrize("kind", ["right", "wrong", "mixed"])
    def test_guesses_change_no_answer(self, runner: Runner, kind: str) -> None:
        plain, guessed = ask_everything(), ask_everything()
        ToyScheduler(runner).answer(*plain)
        for one, other in zip(guessed, plain, strict=True):
            one.guess = guesser(kind, [*other.tokens], runner.facts.vocab_size)
        ToyScheduler(runner, chunk=6 if kind == "mixed" else 1000).answer(*guessed, *ask())
        for one, other in zip(guessed, plain, strict=True):
            assert one.made == other.made
            assert [report.token for report in one.logprobs] == [r.token for r in other.logprobs]
            found = [report.logprob for report in one.logprobs]
            assert found == pytest.approx([r.logprob for r in other.logprobs], abs=1e-3)
            if kind == "right":
                assert one.steps < other.steps

    # Grammars.

    @pytest.mark.parametrize("kind", ["none", "right", "wrong", "mixed"])
    def test_an_answer_keeps_to_its_grammar_with_guesses_and_without(
        self, runner: Runner, kind: str
    ) -> None:
        tokenizer = WordTokenizer(runner.facts.vocab_size)
        choices = [tokenizer.decode([5, at, at, 3][: 2 + at % 3]) for at in range(14)]
        spec = GrammarSpec("choice", json.dumps(choices))
        tokenizer.compile_grammar(spec)
        plain, held = ask_everything(), ask_everything()
        for one in (*plain, *held):
            # Of the sorts only "bad_words" bars something that all the choices have at a place.
            one.sampling = replace(one.sampling, allowed_token_ids=None, bad_words=())
            one.grammar = tokenizer.grammar(spec)
        ToyScheduler(runner, chunk=9).answer(*plain)
        for one, other in zip(held, plain, strict=True):
            if kind != "none":
                one.guess = guesser(kind, [*other.tokens], runner.facts.vocab_size)
        free, usual = ask(), said(runner, GREEDY)
        ToyScheduler(runner).answer(*held, *free)
        assert [one.made for one in free] == usual
        for one, other in zip(held, plain, strict=True):
            assert one.failure is None
            assert tokenizer.decode(one.made) in choices
            assert one.made == other.made
        if kind == "none":
            assert len({tuple(one.made) for one in held}) > 1

    def test_a_grammar_that_other_wishes_contradict_fails_its_row_alone(
        self, runner: Runner
    ) -> None:
        tokenizer = WordTokenizer(runner.facts.vocab_size)
        spec = GrammarSpec("choice", json.dumps([tokenizer.decode([5, 6]), tokenizer.decode([7])]))
        tokenizer.compile_grammar(spec)
        barred = replace(GREEDY, bad_words=((5,), (7,)))
        held = Asked(PROMPTS[1], 4, barred, grammar=tokenizer.grammar(spec))
        fine = Asked(PROMPTS[0], 4)
        ToyScheduler(runner).answer(held, fine)
        assert fine.made == said(runner, GREEDY, new_tokens=4)[0]
        assert held.failure is not None
        assert "the grammar and bad_words" in held.failure.message

    def test_what_follows_a_wrong_guess_is_no_failure(self, runner: Runner) -> None:
        """The guess would bar everything, were it true."""
        allowed = Sampling(temperature=0.0, allowed_token_ids=(5, 6), bad_words=((7, 5), (7, 6)))
        plain, guessed = Asked(PROMPTS[1], 4, allowed), Asked(PROMPTS[1], 4, allowed)
        guessed.guess = lambda tokens: [7, 7]
        assert ToyScheduler(runner).answer(guessed) == ToyScheduler(runner).answer(plain)


def guesser(kind: str, oracle: Sequence[int], vocabulary: int) -> Guesser:
    """Guesses three tokens from the whole text that is to come; what it does not know it makes up."""

    def guess(tokens: Sequence[int]) -> list[int]:
        at = len(tokens)
        coming = [*oracle[at : at + 3], *[1] * 3][:3]
        match kind:
            case "right":
                return coming
            case "wrong":
                return [(token + 1) % vocabulary for token in coming]
            case _:
                return [*coming[: at % 4], *[(t + at) % vocabulary for t in coming[at % 4 :]]]

    return guess
