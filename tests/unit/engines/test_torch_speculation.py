"""Guesses save steps and change nothing: whoever makes them, however wrong they are, at any temperature."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.unit.engines.checkpoints import VOCAB, save_checkpoint
from tests.unit.engines.guessing import Said, Scripted, say
from tests.unit.schedule.kit import a_spec

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.ports import DraftAsk, Drafter
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import SequenceSpec
from llmhost.engines.torch.load import load_runner
from llmhost.engines.torch.runner import TorchRunner
from llmhost.gpu.lane import FreeLane
from llmhost.schedule.draft_model import ModelDrafter
from llmhost.schedule.drafting import PromptLookup
from llmhost.testing import at

Load = Callable[..., TorchRunner]

SAMPLINGS = {
    "greedy": Sampling(temperature=0.0),
    "hot": Sampling(temperature=1.0),
    "filtered": Sampling(temperature=1.3, top_p=0.9, top_k=40),
    "penalised": Sampling(
        temperature=0.8, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.5
    ),
    "barred": Sampling(temperature=1.0, bad_words=((7, 9), (11,)), logit_bias=((5, 2.0),)),
}


def specs(sampling: Sampling) -> list[SequenceSpec]:
    prompts = [(3, 4, 5, 6, 3, 4, 5, 6, 3, 4), tuple(range(9, 40)), (100,), (8, 8, 8, 8, 8)]
    return [
        a_spec(prompt, sampling=sampling, seed=11 + place, max_new_tokens=16 - place, index=place)
        for place, prompt in enumerate(prompts)
    ]


class Oracle:
    """Knows the answers, and guesses `right` of their next tokens, then something else."""

    def __init__(self, asked: Sequence[SequenceSpec], known: Said, right: int) -> None:
        self.texts = [
            [*spec.prompt, *answer] for spec, answer in zip(asked, known.answers, strict=True)
        ]
        self.right = right

    def __call__(self, ask: DraftAsk) -> Sequence[int]:
        here = len(ask.tokens)
        coming = self.texts[ask.seq_id][here : here + self.right]
        assert list(ask.tokens) == self.texts[ask.seq_id][:here]
        return [*coming, *[(here * 7 + n) % VOCAB for n in range(ask.most)]]


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_answers_are_the_same_whoever_guesses(load: Load, sampling: Sampling):
    runner, asked = load("llama", block_tokens=8), specs(sampling)
    plain = say(runner, asked)

    for right in (0, 2):
        guessed = say(runner, asked, Scripted(Oracle(asked, plain, right)))
        assert guessed.answers == plain.answers
        assert guessed.confirmed >= right * guessed.steps / 2
    guessed = say(runner, asked, PromptLookup())
    assert guessed.answers == plain.answers


def test_right_guesses_save_steps(load: Load):
    runner, asked = load("llama"), specs(SAMPLINGS["hot"])
    plain = say(runner, asked)
    guessed = say(runner, asked, Scripted(Oracle(asked, plain, 9)))

    assert guessed.answers == plain.answers
    assert guessed.guessed == guessed.confirmed
    assert guessed.steps < plain.steps / 3


@pytest.mark.parametrize("family", ["qwen3", "mistral_window"])
def test_other_families_keep_their_answers(load: Load, family: str):
    runner, asked = load(family), specs(SAMPLINGS["hot"])
    plain = say(runner, asked)
    assert say(runner, asked, Scripted(Oracle(asked, plain, 2))).answers == plain.answers


def a_draft(runner: TorchRunner) -> Drafter:
    runner.set_kv_blocks(128)
    lane = FreeLane(at("2026-01-01T00:00Z"))
    return ModelDrafter("draft", runner, lane=lane, kv_blocks=128, vocab_size=VOCAB)


@pytest.mark.parametrize("name", ["hot", "penalised"])
def test_a_draft_model_that_is_the_model_itself_guesses_all(load: Load, name: str):
    runner, asked = load("llama"), specs(SAMPLINGS[name])
    plain = say(runner, asked)
    guessed = say(runner, asked, a_draft(load("llama")))

    assert guessed.answers == plain.answers
    assert guessed.confirmed > 0.9 * guessed.guessed


def test_a_draft_model_of_another_mind_changes_no_answer(load: Load, tmp_path: Path):
    other: Any = load_runner(
        save_checkpoint(tmp_path, "llama", seed=2), block_tokens=8, options=TorchOptions()
    )
    runner, asked = load("llama"), specs(SAMPLINGS["hot"])
    plain = say(runner, asked)
    guessed = say(runner, asked, a_draft(other))

    assert guessed.answers == plain.answers
    assert guessed.guessed > 30


def test_an_answer_ends_amid_its_guesses(load: Load):
    runner, asked = load("llama"), specs(SAMPLINGS["hot"])
    plain = say(runner, asked)
    ending = [
        a_spec(
            spec.prompt,
            sampling=spec.sampling,
            seed=spec.seed,
            max_new_tokens=spec.max_new_tokens,
            stop_token_ids=frozenset({answer[6]}),
        )
        for spec, answer in zip(asked, plain.answers, strict=True)
    ]
    guessed = say(runner, ending, Scripted(Oracle(asked, plain, 9)))

    for cut, whole in zip(guessed.answers, plain.answers, strict=True):
        assert cut == whole[: whole.index(whole[6]) + 1]
