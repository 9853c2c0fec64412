"""Trains the tiny guard from scratch: `python -m llmhost.engines.builtin.train_guard`.

A BERT of two small layers learns to name what is said in texts made of templates, alone and amid harmless ones.
Single-threaded it takes some minutes. Thresholds are chosen on texts of other templates, and the last word has a third
set, measured on the bfloat16 weights as they are written.
"""

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from llmhost.engines.builtin import corpus, course, guard_corpus
from llmhost.engines.builtin.course import CLS, CONTEXT, SEP, Course
from llmhost.engines.builtin.guard_corpus import LABELS, Example

HERE = Path(__file__).parent / "tiny-guard"
VOCAB = 4096
TEXTS_PER_BATCH = 64
MOST_TOKENS = 64
"""What is longer is cut in training."""
HARMLESS_SHARE = 0.45
AMID_OTHERS = 0.3
"""Share of texts that stand before, after or between harmless ones."""
SMOOTHED = 0.02
"""Nothing is quite sure, so that scores say something between 0 and 1."""
BETA = 1.4
"""How much finding counts against being right, where thresholds are chosen: more, since who is warned can look."""
LEAST_F1 = 0.7
"""Mean over the labels, else nothing is written."""


@dataclass(frozen=True, slots=True)
class Measured:
    """How well one label is told."""

    precision: float
    recall: float
    texts: int
    """That have the label."""

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the built-in tiny guard from scratch.")
    course.add_options(parser, HERE, steps=2500, minutes=15.0)
    options = parser.parse_args()
    console = Console()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    start_s = time.monotonic()

    tokenizer = train_tokenizer()
    model = BertForSequenceClassification(_config())
    train(model, tokenizer, Course.of(options), console)
    centre(model, tokenizer)
    rounded = model.to(torch.bfloat16).to(torch.float32).eval()
    kept = guard_corpus.held_out()
    found = measure(rounded, tokenizer, kept)
    for label, measured in found.items():
        console.print(
            f"| {label} | {measured.precision:.0%} | {measured.recall:.0%} | {measured.texts} |"
        )
    console.print(f"{flagged(rounded, tokenizer, kept):.1%} of the harmless are flagged")
    f1 = mean_f1(found)
    console.print(f"mean F1 {f1:.3f}, {time.monotonic() - start_s:.0f} s")
    if f1 < LEAST_F1 and not options.force:
        raise SystemExit(f"below {LEAST_F1:.0%}: nothing written (--force writes it anyway)")
    course.write(rounded, tokenizer, options.out)


def train_tokenizer() -> Tokenizer:
    return course.train_tokenizer(_texts(), VOCAB, pair=f"{CLS} $A {SEP} $B {SEP}")


def _texts() -> Iterator[str]:
    rng = random.Random(0)
    for template in guard_corpus.taught():
        yield from (guard_corpus.fill(template, rng).text for _ in range(20))
    yield from harmless()


def harmless() -> tuple[str, ...]:
    """Questions and answers about this project, none of which has a label."""
    pairs = (*corpus.pairs(), *corpus.unknown())
    return tuple(text[:200] for pair in pairs for text in (*pair.questions, pair.answer))


def _config() -> BertConfig:
    return BertConfig(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        type_vocab_size=1,
        pad_token_id=VOCAB - 3,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        classifier_dropout=0.2,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
        problem_type="multi_label_classification",
    )


class Deck:
    """Deals the texts of training: each group of labels as often as any other, and the harmless ones beside them."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        groups = guard_corpus.of_label(guard_corpus.taught())
        self._harmless = groups.pop(frozenset())
        self._harmful = list(groups.values())
        self._known = harmless()

    def batch(self, size: int) -> list[Example]:
        return [self._deal() for _ in range(size)]

    def _deal(self) -> Example:
        rng = self._rng
        if rng.random() < HARMLESS_SHARE:
            return _careless(self._amid(Example(self._a_harmless(), frozenset())), rng)
        template = rng.choice(rng.choice(self._harmful))
        return _careless(self._amid(guard_corpus.fill(template, rng)), rng)

    def _a_harmless(self) -> str:
        if self._rng.random() < 0.35:
            return self._rng.choice(self._known)
        return guard_corpus.fill(self._rng.choice(self._harmless), self._rng).text

    def _amid(self, example: Example) -> Example:
        """With harmless texts around it: the guard has to find what is said anywhere in a text."""
        rng = self._rng
        if rng.random() >= AMID_OTHERS:
            return example
        around = [self._a_harmless() for _ in range(rng.choice((1, 1, 2)))]
        around.insert(rng.randrange(len(around) + 1), example.text)
        return Example(rng.choice((". ", "\n", " ", "! ", ", ")).join(around), example.labels)


def _careless(example: Example, rng: random.Random) -> Example:
    """As somebody types it: with a word less or twice, an ending, a greeting."""
    parts = example.text.split(" ")
    if len(parts) > 4 and rng.random() < 0.15:
        del parts[rng.randrange(len(parts))]
    text = " ".join(parts)
    if rng.random() < 0.3:
        text = (
            rng.choice(("please ", "hi, ", "can you ", "so ", "well, ", "hey ", "and ", "user: "))
            + text
        )
    if rng.random() < 0.4:
        text += rng.choice((".", "!", "?", " please", " now", "...", " thanks", "!!", " ok"))
    return Example(text, example.labels)


def train(
    model: BertForSequenceClassification, tokenizer: Tokenizer, plan: Course, console: Console
) -> None:
    deck = Deck(plan.seed)

    def told() -> str:
        found = measure(model, tokenizer, guard_corpus.validation())
        return f"mean F1 {mean_f1(found):.3f}"

    course.follow(
        model,
        tokenizer,
        plan,
        console,
        loss=lambda: _loss(model, tokenizer, deck.batch(TEXTS_PER_BATCH)),
        told=told,
    )


def _loss(
    model: BertForSequenceClassification, tokenizer: Tokenizer, batch: list[Example]
) -> Tensor:
    """Short texts and long ones apart, so that little is padded."""
    batch = sorted(batch, key=lambda example: len(example.text))
    middle = 2 * len(batch) // 3
    said = [
        scores(model, tokenizer, [example.text for example in part], MOST_TOKENS)
        for part in (batch[:middle], batch[middle:])
    ]
    target = truths(batch) * (1 - 2 * SMOOTHED) + SMOOTHED
    return F.binary_cross_entropy_with_logits(torch.cat(said), target)


def scores(
    model: BertForSequenceClassification,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    most_tokens: int = CONTEXT,
) -> Tensor:
    """[texts, labels]: logits."""
    ids, mask = course.padded(tokenizer, texts, most_tokens)
    logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits


def truths(examples: Sequence[Example]) -> Tensor:
    """[texts, labels]: 1 where a text has a label."""
    return torch.tensor([[float(label in e.labels) for label in LABELS] for e in examples])


def centre(model: BertForSequenceClassification, tokenizer: Tokenizer) -> None:
    """Move the logits so that each label's best threshold, on the texts that are kept for that, is a score of 0.5."""
    kept = guard_corpus.validation()
    said, true = judged(model, tokenizer, kept), truths(kept) > 0.5
    best = [_best_threshold(said[:, i], true[:, i]) for i in range(len(LABELS))]
    with torch.no_grad():
        model.classifier.bias -= torch.tensor(best)


def _best_threshold(said: Tensor, true: Tensor) -> float:
    """A logit: the middle of those whose weighted F is the highest."""
    tried = torch.arange(-3.0, 3.01, 0.05)
    worth = torch.tensor([_weighted_f(said > threshold, true) for threshold in tried.tolist()])
    return float(tried[worth >= worth.max() - 0.002].median())


def _weighted_f(found: Tensor, true: Tensor) -> float:
    both = float((found & true).sum())
    missed, false = float(true.sum()) - both, float(found.sum()) - both
    square = BETA**2
    return (1 + square) * both / ((1 + square) * both + square * missed + false)


def judged(
    model: BertForSequenceClassification, tokenizer: Tokenizer, kept: Sequence[Example]
) -> Tensor:
    """[texts, labels]: logits, without what makes training harder."""
    model.eval()
    tokenizer.model.dropout = None
    texts = [example.text for example in kept]
    with torch.inference_mode():
        parts = [scores(model, tokenizer, texts[i : i + 256]) for i in range(0, len(texts), 256)]
    return torch.cat(parts)


def measure(
    model: BertForSequenceClassification, tokenizer: Tokenizer, kept: Sequence[Example]
) -> dict[str, Measured]:
    found, true = judged(model, tokenizer, kept) > 0, truths(kept) > 0.5
    return {label: _measured(found[:, i], true[:, i]) for i, label in enumerate(LABELS)}


def flagged(
    model: BertForSequenceClassification, tokenizer: Tokenizer, kept: Sequence[Example]
) -> float:
    """The share of harmless texts in which it finds something."""
    harmless = [example for example in kept if not example.labels]
    return float((judged(model, tokenizer, harmless) > 0).any(-1).float().mean())


def _measured(found: Tensor, true: Tensor) -> Measured:
    both = int((found & true).sum())
    return Measured(
        both / max(int(found.sum()), 1), both / max(int(true.sum()), 1), int(true.sum())
    )


def mean_f1(found: dict[str, Measured]) -> float:
    return sum(one.f1 for one in found.values()) / len(found)


if __name__ == "__main__":
    main()
