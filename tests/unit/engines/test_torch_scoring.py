"""Log probabilities of prompts: the model's own, whatever a step is made of, and in bounded memory."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from tests.unit.engines.toy_scheduler import GREEDY, Asked, ToyScheduler
from torch import Tensor

from llmhost.core.errors import EngineFailed
from llmhost.core.output import TokenLogprobs
from llmhost.core.step import Draw, Row
from llmhost.engines.torch.runner import TorchRunner

Load = Callable[..., TorchRunner]
PROMPT = [(7 * place * place) % 251 for place in range(40)]
SCORED = replace(GREEDY, prompt_logprobs=3)


def of_transformers(folder: Path) -> Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )  # transformers 5.17 gives gemma2 one that bounds no scores
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([PROMPT])).logits[0]
    return logits.log_softmax(-1)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_scores_are_those_of_transformers(
    load: Load, checkpoint: Callable[[str], Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gemma2 bounds its logits, so that the output layer alone would not do."""
    monkeypatch.setattr("llmhost.engines.torch.scoring.SLICE_NUMBERS", 256 * 7)
    wanted = of_transformers(checkpoint(family))
    asked = Asked(PROMPT, 2, SCORED)
    ToyScheduler(load(family, dtype="float32"), chunk=18).answer(asked)
    assert [report.token for report in asked.prompt_logprobs] == PROMPT[1:]
    for place, report in enumerate(asked.prompt_logprobs):
        assert report.logprob == pytest.approx(float(wanted[place, report.token]), abs=2e-3)
        assert report.rank == int((wanted[place] > wanted[place, report.token]).sum()) + 1
        best = float(wanted[place].max())
        assert report.top[0][1] == pytest.approx(best, abs=2e-3)


def test_a_prompt_is_scored_in_slices_and_the_body_of_the_model_runs_once(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = load()
    runner.set_kv_blocks(8)
    bodies: list[int] = []
    heads: list[int] = []
    model = runner._model
    model.base_model.layers[0].register_forward_hook(lambda *_: bodies.append(1))
    model.get_output_embeddings().register_forward_hook(
        lambda _module, _inputs, out: heads.append(out.shape[1])
    )
    row = Row(0, PROMPT, 0, [*range(5)], SCORED, 0, True, prompt_tokens=len(PROMPT), known=PROMPT)
    [whole] = runner.run([row])
    monkeypatch.setattr("llmhost.engines.torch.scoring.SLICE_NUMBERS", 256 * 10)

    [sliced] = runner.run([row])

    assert bodies == [1, 1]
    assert heads == [39, 1, 10, 10, 10, 9, 1]
    assert isinstance(whole, Draw) and isinstance(sliced, Draw)
    assert sliced.tokens == whole.tokens
    found = [report.logprob for report in sliced.prompt_logprobs]
    assert found == pytest.approx([report.logprob for report in whole.prompt_logprobs], abs=1e-4)
    [plain] = runner.run([row._replace(sampling=GREEDY)])
    assert (plain,) == whole.tokens, "the model is as it was"


def test_a_row_without_a_token_to_draw_has_its_scores_alone(load: Load) -> None:
    runner = load()
    runner.set_kv_blocks(8)
    row = Row(0, PROMPT[:16], 0, [3], SCORED, 0, False, prompt_tokens=len(PROMPT), known=PROMPT)
    [drawn] = runner.run([row])
    assert isinstance(drawn, Draw)
    assert drawn.tokens == ()
    assert [report.token for report in drawn.prompt_logprobs] == PROMPT[1:17]


def test_a_prompt_whose_logits_are_no_numbers_fails_alone(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = load()
    runner.set_kv_blocks(8)
    rows = [
        Row(7, [5, 6, 7], 0, [0], SCORED, 0, True, prompt_tokens=3, known=[5, 6, 7]),
        Row(8, [9, 8, 7], 0, [1], SCORED, 0, True, prompt_tokens=3, known=[9, 8, 7]),
        Row(9, [4], 0, [2], GREEDY, 0, True),
    ]
    [_, _, usual] = runner.run(rows)
    head = runner._model.get_output_embeddings()

    def spoil(_module: object, _inputs: object, out: Tensor) -> Tensor:
        """Of the first pass the place after row 8's second token."""
        hook.remove()
        out[0, 3] = float("nan")
        return out

    hook = head.register_forward_hook(spoil)
    [fine, failed, other] = runner.run(rows)

    assert isinstance(fine, Draw)
    assert all(isinstance(report, TokenLogprobs) for report in fine.prompt_logprobs)
    assert isinstance(failed, EngineFailed) and "sequence 8" in failed.message
    assert other == usual
