"""How often the embedder and the verifier give an answer to a question that asks the same, and to one that does not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import llmhost.engines.builtin
from llmhost.cache.alike import unit
from llmhost.cache.trust import Terms
from llmhost.cache.verify import ask_the_same, facts_of
from llmhost.config.schema.models import ModelSpec
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import Pooling
from llmhost.core.step import Row
from llmhost.engines.kinds import TorchKind
from llmhost.text.tokenizer import load_tokenizer

TEXTS = Path(__file__).parent / "texts" / "alike_questions.txt"
EMBEDDER = Path(llmhost.engines.builtin.__file__).parent / "tiny-embed"
LEAST_HITS, MOST_FALSE = 0.4, 0.02

pytestmark = pytest.mark.bars


class Pair(NamedTuple):
    question: str
    other: str
    is_same: bool


def pairs() -> Iterator[Pair]:
    question = ""
    for line in TEXTS.read_text().splitlines():
        if line.startswith(("= ", "! ")):
            yield Pair(question, line[2:], line.startswith("="))
        elif line and not line.startswith("#"):
            question = line


def vectors_of(texts: list[str]) -> dict[str, Any]:
    spec = ModelSpec(source="builtin:tiny-embed", options={"device": "cpu"})
    kind = TorchKind()
    runner: Any = kind.load(spec, EMBEDDER, kind.footprint(spec, EMBEDDER))
    tokenizer = load_tokenizer(EMBEDDER)
    found = {}
    for at in range(0, len(texts), 32):
        part = texts[at : at + 32]
        rows = [
            Row(
                *(number, tokenizer.encode_whole(text)[0], 0, [], Sampling(), 0, True),
                pooling=Pooling("embed"),
            )
            for number, text in enumerate(part)
        ]
        for text, drawn in zip(part, runner.run(rows), strict=True):
            found[text] = unit(np.frombuffer(drawn.pooled, np.float32))
    return found


def test_answers_go_to_those_who_ask_the_same_and_hardly_to_others(bar: Callable[[str], None]):
    known = list(pairs())
    vectors = vectors_of(sorted({text for pair in known for text in pair[:2]}))
    least = Terms().min_similarity
    given = {True: 0, False: 0}
    near = {True: 0, False: 0}
    told = []
    for pair in known:
        facts = [facts_of(text) for text in pair[:2]]
        is_near = float(vectors[pair.question] @ vectors[pair.other]) >= least
        is_given = is_near and None not in facts and ask_the_same(*facts)  # type: ignore[arg-type]
        near[pair.is_same] += is_near
        given[pair.is_same] += is_given
        if is_given and not pair.is_same:
            told.append(f"{pair.question} / {pair.other}")
    count = {kind: sum(pair.is_same is kind for pair in known) for kind in (True, False)}
    hits, false = (given[kind] / count[kind] for kind in (True, False))
    bar(
        f"at a cosine of {least}: {given[True]} of {count[True]} that ask the same are given ({hits:.0%}),"
        f" {given[False]} of {count[False]} that do not ({false:.1%}); by the cosine alone"
        f" {near[True]} and {near[False]}"
    )
    for line in told:
        bar(f"false: {line}")
    assert hits >= LEAST_HITS
    assert false <= MOST_FALSE
