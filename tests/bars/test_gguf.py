"""GGUF files against the torch engine, over all that the built-in model knows."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from tests.bench.bench_gguf_step import VOCABULARY, bar_ms, overheads_ms
from tests.unit.engines.gguf_models import write_random_llama
from tests.unit.engines.llama.test_built_in import models, wrong
from tests.unit.engines.llama.test_same_numbers import FORMS, compare

from llmhost.config.schema.models import ModelSpec
from llmhost.engines.builtin.corpus import known_answers
from llmhost.testing import make_host

pytestmark = pytest.mark.bars
pytest.importorskip("llama_cpp")
MISTAKEN = "こんにちは"
"""The one answer that the weights themselves get wrong."""


def test_every_form_of_a_checkpoint_computes_the_same(
    bar: Callable[[str], None], tmp_path: Path
) -> None:
    worst = max(compare(tmp_path / form, form) for form in FORMS)

    bar(
        f"{len(FORMS)} forms of checkpoints as GGUF files: logits within {worst:.1e} of the largest"
    )


def test_a_step_costs_little_besides_the_kernels(
    bar: Callable[[str], None], tmp_path: Path
) -> None:
    path = write_random_llama(tmp_path / "wide.gguf", vocabulary=VOCABULARY)

    found = {count: median(overheads_ms(path, count, 300, "auto")) for count in (1, 8, 32)}

    told = ", ".join(f"{took_ms:.2f} ms for {count}" for count, took_ms in found.items())
    bar(f"besides llama_decode, greedy, {VOCABULARY} words, CPU time of a step: {told}")
    assert all(took_ms < bar_ms(count) for count, took_ms in found.items())


async def test_every_answer_is_the_torch_engines_word_for_word(bar: Callable[[str], None]) -> None:
    """What the weights themselves get wrong they get wrong in the same words."""
    asked, torch = known_answers(), ModelSpec(source="builtin:tiny", max_queue=1024)

    async with make_host(models=models(max_queue=1024)) as host:
        found = await wrong(host, asked)
    async with make_host(models={"quant": torch}) as host:
        by_torch = await wrong(host, asked)

    bar(
        f"the built-in model as a GGUF file: {len(asked) - len(found)} of {len(asked)} answers as they should be, the"
        f" others as the torch engine gives them: {found == by_torch}"
    )
    assert found == by_torch and [known for _, known in found] == [MISTAKEN]
