"""Trains the tiny guard from scratch: `python -m llmhost.engines.builtin.train_guard`.

A BERT of two small layers learns to name what is said in texts made of templates, alone and amid harmless ones.
Single-threaded it takes a few minutes. The last word has a set made of other templates, measured on the bfloat16
weights as they are written.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from llmhost.engines.builtin import corpus, guard_corpus
from llmhost.engines.builtin.guard_corpus import LABELS, Example

HERE = Path(__file__).parent / "tiny-guard"
VOCAB = 4096
CONTEXT = 256
PAD, CLS, SEP = "[PAD]", "[CLS]", "[SEP]"
TEXTS_PER_BATCH = 64
MOST_TOKENS = 64
"""What is longer is cut in training."""
HARMLESS_SHARE = 0.45
AMID_OTHERS = 0.3
"""Share of texts that stand before, after or between harmless ones."""
WARM_UP_STEPS = 50
DROPPED_MERGES = 0.1
"""Share of merges left out in training (Provilkov et al., 2020): words come in other pieces, as typing errors do."""
SMOOTHED = 0.02
"""Nothing is quite sure, so that scores say something between 0 and 1."""
THRESHOLD = 0.5
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
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peak", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--minutes", type=float, default=15.0, help="of CPU; ends the course early")
    parser.add_argument("--force", action="store_true", help="write a worse model, too")
    options = parser.parse_args()
    console = Console()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    start_s = time.monotonic()

    tokenizer = train_tokenizer()
    model = BertForSequenceClassification(_config())
    train(model, tokenizer, options, console)
    rounded = model.to(torch.bfloat16).to(torch.float32).eval()
    found = measure(rounded, tokenizer)
    for label, measured in found.items():
        console.print(
            f"| {label} | {measured.precision:.0%} | {measured.recall:.0%} | {measured.texts} |"
        )
    f1 = mean_f1(found)
    console.print(f"mean F1 {f1:.3f}, {time.monotonic() - start_s:.0f} s")
    if f1 < LEAST_F1 and not options.force:
        raise SystemExit(f"below {LEAST_F1:.0%}: nothing written (--force writes it anyway)")
    write(rounded, tokenizer, options.out)


def train_tokenizer() -> Tokenizer:
    """Lower case, byte-level BPE: any text has tokens, and none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 3,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (PAD, CLS, SEP)])
    ids = [(token, tokenizer.token_to_id(token)) for token in (CLS, SEP)]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B {SEP}", special_tokens=ids
    )
    return tokenizer


def _texts() -> Iterator[str]:
    rng = random.Random(0)
    for template in guard_corpus.templates("train"):
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
        groups = guard_corpus.of_label(guard_corpus.templates("train"))
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
    model: BertForSequenceClassification,
    tokenizer: Tokenizer,
    course: argparse.Namespace,
    console: Console,
) -> None:
    deck = Deck(course.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.peak, weight_decay=0.05)
    began_s = time.process_time()
    for step in range(course.steps):
        # The time may end the course before its steps do; the pace slows down towards whichever comes first.
        done = max(step / course.steps, (time.process_time() - began_s) / (60 * course.minutes))
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = course.peak * min(1.0, (step + 1) / WARM_UP_STEPS) * (1.02 - done)
        model.train()
        tokenizer.model.dropout = DROPPED_MERGES
        loss = _loss(model, tokenizer, deck.batch(TEXTS_PER_BATCH))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            f1 = mean_f1(measure(model, tokenizer))
            console.log(f"step {step + 1}, {done:.0%}: loss {loss.item():.3f}, mean F1 {f1:.3f}")


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
    rows = [tokenizer.encode(text).ids[:most_tokens] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [VOCAB - 3] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits


def truths(examples: Sequence[Example]) -> Tensor:
    """[texts, labels]: 1 where a text has a label."""
    return torch.tensor([[float(label in e.labels) for label in LABELS] for e in examples])


def measure(model: BertForSequenceClassification, tokenizer: Tokenizer) -> dict[str, Measured]:
    """By the texts that are kept for it."""
    model.eval()
    tokenizer.model.dropout = None
    kept = guard_corpus.held_out()
    with torch.inference_mode():
        said = torch.cat(
            [
                scores(model, tokenizer, [e.text for e in kept[i : i + 256]])
                for i in range(0, len(kept), 256)
            ]
        )
    found, true = said.sigmoid() > THRESHOLD, truths(kept) > 0.5
    return {label: _measured(found[:, i], true[:, i]) for i, label in enumerate(LABELS)}


def _measured(found: Tensor, true: Tensor) -> Measured:
    both = int((found & true).sum())
    return Measured(
        both / max(int(found.sum()), 1), both / max(int(true.sum()), 1), int(true.sum())
    )


def mean_f1(found: dict[str, Measured]) -> float:
    return sum(one.f1 for one in found.values()) / len(found)


def write(model: BertForSequenceClassification, tokenizer: Tokenizer, out: Path) -> None:
    """The folder as transformers would write it."""
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "cls_token": CLS,
        "sep_token": SEP,
        "model_max_length": CONTEXT,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
