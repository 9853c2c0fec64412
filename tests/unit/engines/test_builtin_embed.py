"""The built-in embedder: a small folder as sentence-transformers writes it, that finds questions in other words."""

import re
from pathlib import Path
from typing import Any

import pytest

import llmhost.engines.builtin
from llmhost.config.schema.models import ModelSpec
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import Pooling
from llmhost.core.step import Draw, Row
from llmhost.engines.builtin import corpus
from llmhost.engines.kinds import TorchKind
from llmhost.text.tokenizer import load_tokenizer

HERE = Path(llmhost.engines.builtin.__file__).parent
FOLDER = HERE / "tiny-embed"


@pytest.fixture(scope="module")
def runner() -> Any:
    spec = ModelSpec(source="builtin:tiny-embed", options={"device": "cpu"})
    kind = TorchKind()
    return kind.load(spec, FOLDER, kind.footprint(spec, FOLDER))


def test_all_of_it_is_under_four_mebibytes() -> None:
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) < 4 * 2**20


def test_what_measures_it_is_asked_nowhere_else() -> None:
    asked = {q.lower().rstrip("?") for pair in corpus.pairs() for q in pair.questions}
    reworded = [text.lower().rstrip("?") for _, text in corpus.rewordings()]

    assert len(set(reworded)) == len(reworded) >= 70
    assert not asked.intersection(reworded)
    assert {question for question, _ in corpus.rewordings()} <= {
        question for pair in corpus.pairs() for question in pair.questions
    }


def test_it_embeds_and_says_so(runner: Any) -> None:
    assert (runner.facts.task, runner.facts.pooled_size) == ("embed", 192)
    assert runner.facts.max_sequence_length == 256


def test_a_reworded_question_finds_its_own_more_often_than_common_words_do(runner: Any) -> None:
    import torch

    tokenizer = load_tokenizer(FOLDER)

    def embed(texts: list[str]) -> torch.Tensor:
        rows = [
            Row(
                i,
                tokenizer.encode(text)[:256],
                0,
                [],
                Sampling(),
                0,
                True,
                pooling=Pooling("embed"),
            )
            for i, text in enumerate(texts)
        ]
        drawn = runner.run(rows)
        assert all(isinstance(one, Draw) for one in drawn)
        return torch.tensor([list(one.pooled) for one in drawn])

    pairs = corpus.pairs()
    place = {question: i for i, pair in enumerate(pairs) for question in pair.questions}
    asked = embed([text for _, text in corpus.rewordings()])
    right = torch.tensor([place[question] for question, _ in corpus.rewordings()])

    def share(texts: list[str]) -> float:
        return float(((asked @ embed(texts).T).argmax(1) == right).float().mean())

    questions = share([pair.questions[0] for pair in pairs])
    answers = share([pair.answer for pair in pairs])

    said = re.search(r"builtin:tiny-embed \| (\d+)% \| (\d+)% \|", (HERE / "README.md").read_text())
    assert said is not None
    assert questions == pytest.approx(int(said[1]) / 100, abs=0.02)
    assert answers == pytest.approx(int(said[2]) / 100, abs=0.02)
    assert questions > 0.53 + 0.05  # what common words alone find, weighted by how rare they are
