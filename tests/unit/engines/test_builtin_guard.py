"""The built-in guard: a small classifier, measured by texts that training never sees."""

import random
import re
from pathlib import Path
from typing import Any

import pytest

import llmhost.engines.builtin
from llmhost.config.schema.models import ModelSpec
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import Pooling
from llmhost.core.step import Draw, Row
from llmhost.engines.builtin import guard_corpus
from llmhost.engines.builtin.guard_corpus import LABELS
from llmhost.engines.kinds import TorchKind
from llmhost.safety.guards.labels import categories_of
from llmhost.text.tokenizer import load_tokenizer

FOLDER = Path(llmhost.engines.builtin.__file__).parent / "tiny-guard"
DOC = (Path(__file__).parents[3] / "docs" / "guards.md").read_text()


@pytest.fixture(scope="module")
def runner() -> Any:
    spec = ModelSpec(source="builtin:tiny-guard", options={"device": "cpu"})
    kind = TorchKind()
    return kind.load(spec, FOLDER, kind.footprint(spec, FOLDER))


def test_all_of_it_is_under_four_mebibytes() -> None:
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) < 4 * 2**20


def test_its_labels_are_categories_as_they_are(runner: Any) -> None:
    assert (runner.facts.task, runner.facts.labels) == ("classify", LABELS)
    assert categories_of(LABELS, {}, model="tiny-guard") == LABELS


def test_what_measures_it_or_sets_its_thresholds_is_learnt_nowhere() -> None:
    taught = {template.text for template in guard_corpus.taught()}
    sets = [
        taught,
        *({one.text for one in guard_corpus.templates(n)} for n in ("validation", "held_out")),
    ]
    rng = random.Random(5)
    seen = {
        guard_corpus.fill(template, rng).text
        for template in guard_corpus.taught()
        for _ in range(30)
    }

    assert len(set.union(*sets)) == sum(map(len, sets))
    measured = {example.text for example in guard_corpus.held_out()}
    assert not measured & (seen | {example.text for example in guard_corpus.validation()})
    for words in guard_corpus.words().values():
        assert len(words) > 1


def test_every_label_is_taught_and_measured() -> None:
    for name in ("train", "validation", "held_out"):
        groups = guard_corpus.of_label(guard_corpus.templates(name))
        assert {label for labels in groups for label in labels} == set(LABELS)
        assert groups[frozenset()]


def test_it_is_right_as_often_as_the_docs_say(runner: Any) -> None:
    tokenizer, kept = load_tokenizer(FOLDER), guard_corpus.held_out()
    rows = [
        *(
            Row(
                *(i, tokenizer.encode(example.text), 0, [], Sampling(), 0, True),
                pooling=Pooling("classify"),
            )
            for i, example in enumerate(kept)
        )
    ]
    drawn = runner.run(rows)
    assert all(isinstance(one, Draw) for one in drawn)

    table = {
        label: (int(precision), int(recall), int(texts))
        for label, precision, recall, texts in re.findall(
            r"^\| `([a-z-]+)` \| (\d+)% \| (\d+)% \| (\d+) \|$", DOC, re.MULTILINE
        )
    }
    assert table.keys() == set(LABELS)
    for place, label in enumerate(LABELS):
        found = [one.pooled[place] >= 0.5 for one in drawn]
        true = [label in example.labels for example in kept]
        both = sum(f and t for f, t in zip(found, true, strict=True))
        precision, recall = both / max(sum(found), 1), both / sum(true)
        assert 100 * precision == pytest.approx(table[label][0], abs=1.5), label
        assert 100 * recall == pytest.approx(table[label][1], abs=1.5), label
        assert sum(true) == table[label][2]
    harmless = [i for i, example in enumerate(kept) if not example.labels]
    flagged = sum(max(drawn[i].pooled) >= 0.5 for i in harmless)
    said = re.search(r"flags (\d+)% of the (\d+) harmless", DOC)
    assert said is not None
    assert 100 * flagged / len(harmless) == pytest.approx(int(said[1]), abs=1.5)
    assert len(harmless) == int(said[2])
