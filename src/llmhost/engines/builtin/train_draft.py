"""Trains the draft model of the tiny one: `python -m llmhost.engines.builtin.train_draft`.

One layer over the tiny model's own tokenizer, taught the same conversations: what it guesses is what the tiny model
says, mostly, for a fraction of the work. A guess that is wrong costs time and changes no answer, so nothing here has
to be exact, and a few minutes on one CPU core are enough.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llmhost.engines.builtin import corpus, train, variety
from llmhost.engines.builtin.rows import Row, row_of
from llmhost.engines.builtin.train import Course

HERE = train.HERE.with_name("tiny-draft")
LEAST_SHARE = 0.5
"""Of the known answers' tokens that it must guess to be written."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the draft model of the built-in tiny one.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peak", type=float, default=6e-3, help="highest learning rate")
    parser.add_argument("--resume", type=Path, help="begin with the weights here")
    options = parser.parse_args()
    console = Console()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    start_s = time.monotonic()

    tokenizer = AutoTokenizer.from_pretrained(train.HERE)
    model = LlamaForCausalLM(shape())
    if options.resume:
        model = LlamaForCausalLM.from_pretrained(options.resume, dtype=torch.float32)
    course = Course(options.steps, options.seed, options.peak, exact_after=0.25, margin=0.0)
    train.train(model, tokenizer, course, console)
    rounded = model.to(torch.bfloat16).to(torch.float32)
    share = guessed_share(rounded, tokenizer)
    console.print(f"{share:.1%} of the known answers' tokens, {time.monotonic() - start_s:.0f} s")
    if share < LEAST_SHARE:
        raise SystemExit(f"below {LEAST_SHARE:.0%}: nothing written")
    options.out.mkdir(parents=True, exist_ok=True)
    train.put_tokenizer(options.out, train.HERE)
    train.write_model(rounded, options.out)


def shape() -> LlamaConfig:
    """The tiny model's configuration with one narrow layer."""
    config = LlamaConfig.from_pretrained(train.HERE)
    config.update(
        {
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
        }
    )
    return config


@torch.inference_mode()
def guessed_share(model: Any, tokenizer: Any, every: int = 1) -> float:
    """The share of the known answers' tokens, end of turn included, that are its best guess; of each `every`th."""
    right = asked = 0
    pairs = list(zip(corpus.known_answers(), variety.exact(), strict=True))[::every]
    for known, conversation in pairs:
        row = _answered(known.answer, row_of(conversation, tokenizer), tokenizer)
        best = model(input_ids=torch.tensor([row.ids[:-1]]), use_cache=False).logits[0].argmax(-1)
        wanted = torch.tensor(row.learnt[1:])
        right += int((best == torch.tensor(row.ids[1:]))[wanted].sum())
        asked += int(wanted.sum())
    return right / asked


def _answered(answer: str, row: Row, tokenizer: Any) -> Row:
    """Only the last turn counts; after its `<|im_end|>` the template has a line break."""
    count = len(tokenizer.encode(answer, add_special_tokens=False)) + 1
    last = len(row.ids) - 1
    return Row(row.ids, [last - count <= place < last for place in range(len(row.ids))])


if __name__ == "__main__":
    main()
