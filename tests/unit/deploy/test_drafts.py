"""The smaller model that guesses: it has the same words, memory of its own, and comes and goes with the larger."""

from pathlib import Path
from typing import Any

import pytest
from tests.unit.deploy.fakes import ToyKind, entry, facts
from tests.unit.deploy.test_effects import Box

from llmhost.config.schema.models import ModelSpec, SpeculationSettings
from llmhost.core.errors import DoesNotFit, ModelUnavailable
from llmhost.core.ports import Tokenizer
from llmhost.deploy.catalogue import ModelEntry
from llmhost.deploy.drafts import draft_entry
from llmhost.text.words import WordTokenizer


class Pair(ToyKind):
    """Of its two models the one called "small" has words of its own."""

    small_words: Tokenizer = WordTokenizer(64)

    def tokenizer(self, spec: ModelSpec, folder: Path | None) -> Tokenizer:
        super().tokenizer(spec, folder)
        return self.small_words if spec.source == "small" else WordTokenizer(64)


class Backwards(WordTokenizer):
    """As many words, each spelt from its end."""

    def decode(self, tokens: Any, *, skip_special_tokens: bool = True) -> str:
        return super().decode(tokens, skip_special_tokens=skip_special_tokens)[::-1]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    box = Box(tmp_path)
    box.toy = Pair(loaded=facts(checks_drafts=True))
    box.effects.files._kinds = {"toy": box.toy}
    return box


def large(**speculation: Any) -> ModelEntry:
    settings = SpeculationSettings(
        **{"method": "draft", "draft": "small", "kv_memory": "320", **speculation}
    )
    return entry("m", engine="toy", kv_memory="640", speculation=settings)


async def test_both_have_memory_and_give_it_back_together(box: Box):
    replica = await box.load(large())
    assert box.leases == {"m@1": 1640, "draft of m@1": 1320}

    await box.effects.unload(replica, drain_s=0)
    assert box.leases == {}
    assert [runner.is_closed for runner in box.toy.runners] == [True, True]


def test_the_smaller_one_has_its_weights_as_they_are_loaded():
    precise = entry(
        "m", speculation=large().spec.speculation, options={"weights": "fp8", "dtype": "float16"}
    )
    small = draft_entry(precise)
    assert small is not None
    assert small.spec.options == {"dtype": "float16"}


async def test_another_tokenizer_is_refused_by_name_before_its_weights_are_read(box: Box):
    for words, reason in (
        (WordTokenizer(65), "64 tokens against 65"),
        (Backwards(64), "id 0 is"),
    ):
        box.toy.small_words = words
        with pytest.raises(ModelUnavailable, match=reason) as refused:
            await box.load(large())
        assert "'small' has another tokenizer than 'builtin:tiny'" in refused.value.message
    assert "load" not in box.toy.done
    assert box.leases == {}


async def test_a_smaller_model_that_does_not_fit_says_whose_it_is(box: Box):
    with pytest.raises(DoesNotFit, match="draft of m@1 needs"):
        await box.load(large(kv_memory="50000"))
    assert box.leases == {}


async def test_a_larger_model_that_fails_leaves_nothing_of_the_smaller(box: Box):
    loads: list[int] = []

    def second_fails() -> None:
        loads.append(1)
        if len(loads) == 2:
            raise ModelUnavailable("file cut short")

    box.toy.on_load = second_fails
    with pytest.raises(ModelUnavailable, match="file cut short"):
        await box.load(large())
    assert box.leases == {}
    assert [runner.is_closed for runner in box.toy.runners] == [True]


async def test_an_engine_that_cannot_check_guesses_goes_on_without(
    box: Box, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    box.toy.loaded = facts(checks_drafts=False)
    replica = await box.load(large(method="ngram"))
    await box.effects.unload(replica, drain_s=0)

    assert "speculation.off" in caplog.text


@pytest.mark.parametrize("method", ["auto", "off", "ngram"])
async def test_other_methods_load_no_second_model(box: Box, method: str):
    replica = await box.load(large(method=method))
    await box.effects.unload(replica, drain_s=0)

    assert len(box.toy.runners) == 1
