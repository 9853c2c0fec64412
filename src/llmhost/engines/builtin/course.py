"""What the courses of the small encoders have in common: words in pieces, a pace, and files.

Single-threaded, so that the same seed gives the same weights. Knows nothing of what is learnt.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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
from torch import Tensor, nn

PAD, CLS, SEP = "[PAD]", "[CLS]", "[SEP]"
CONTEXT = 256
WARM_UP_STEPS = 50
DROPPED_MERGES = 0.1
"""Share of merges left out in training (Provilkov et al., 2020): words come in other pieces, as typing errors do."""


@dataclass(frozen=True, slots=True)
class Course:
    """Training ends after so many steps or minutes of CPU, whichever comes first."""

    steps: int
    seed: int
    peak: float
    """The highest learning rate."""
    minutes: float

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Course":
        return cls(options.steps, options.seed, options.peak, options.minutes)


def add_options(
    parser: argparse.ArgumentParser, out: Path, *, steps: int, minutes: float, peak: float = 1.5e-3
) -> None:
    """What every course can be told."""
    parser.add_argument("--out", type=Path, default=out, help="folder to write")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peak", type=float, default=peak, help="highest learning rate")
    parser.add_argument(
        "--minutes", type=float, default=minutes, help="of CPU; ends the course early"
    )
    parser.add_argument("--force", action="store_true", help="write a worse model, too")


def train_tokenizer(texts: Iterable[str], vocab: int, *, pair: str) -> Tokenizer:
    """Lower case, byte-level BPE: any text has tokens, and none is unknown. The last three are PAD, CLS and SEP.

    `pair` is how two texts stand together.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - 3,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (PAD, CLS, SEP)])
    ids = [(token, tokenizer.token_to_id(token)) for token in (CLS, SEP)]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{CLS} $A {SEP}", pair=pair, special_tokens=ids
    )
    return tokenizer


def follow(
    model: nn.Module,
    tokenizer: Tokenizer,
    course: Course,
    console: Console,
    *,
    loss: Callable[[], Tensor],
    told: Callable[[], str],
) -> None:
    """Train to the end of the course. `loss` is of a fresh batch; every hundred steps `told` says how well it does."""
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
        lost = loss()
        lost.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            console.log(f"step {step + 1}, {done:.0%}: loss {lost.item():.3f}, {told()}")


def padded(tokenizer: Tokenizer, texts: Sequence[str], most_tokens: int) -> tuple[Tensor, Tensor]:
    """[texts, tokens]: ids, and 1 where there is one. What is longer is cut."""
    pad = tokenizer.token_to_id(PAD)
    rows = [tokenizer.encode(text).ids[:most_tokens] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def write(model: Any, tokenizer: Tokenizer, out: Path) -> None:
    """The folder as transformers would write it, in bfloat16."""
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": PAD,
            "cls_token": CLS,
            "sep_token": SEP,
            "model_max_length": CONTEXT,
        },
    )


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
