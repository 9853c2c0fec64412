"""How well the tiny model copies what it never saw: `python -m llmhost.engines.builtin.copying`.

Every value in these questions is one that `drills.py` keeps from training. An answer counts when greedy decoding would
write it to the letter, end of turn included.
"""

import argparse
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmhost.engines.builtin import drills, train
from llmhost.engines.builtin.drills import Drill
from llmhost.engines.builtin.rows import row_of

SEED = 77
COUNT = 600


@dataclass(frozen=True, slots=True)
class Share:
    """Turns that were right to the letter, and tokens that were, of all that were asked for."""

    turns: int
    asked: int
    tokens: float

    def __str__(self) -> str:
        return f"{self.tokens:.1%} of tokens, {self.turns} of {self.asked} turns"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the built-in tiny model copies.")
    parser.add_argument("--model", type=Path, default=train.HERE, help="folder of the model")
    parser.add_argument("--count", type=int, default=COUNT, help="conversations to try")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    shares = copied(model, tokenizer, drills.measured(options.seed, options.count))
    for kind, share in sorted(shares.items()):
        Console().print(f"{kind}: {share}", highlight=False)


@torch.inference_mode()
def copied(model: Any, tokenizer: Any, given: list[Drill]) -> dict[str, Share]:
    """By kind of drill, how much of the assistant's turns greedy decoding would write to the letter.

    A turn is written exactly when each of its tokens is the best one after those before it.
    """
    found: dict[str, list[list[bool]]] = {}
    for drill in given:
        row = row_of(drill.conversation, tokenizer)
        logits = model(input_ids=torch.tensor([row.ids[:-1]]), use_cache=False).logits[0]
        hits = (logits.argmax(-1) == torch.tensor(row.ids[1:])).tolist()
        for is_learnt, turn in groupby(
            zip(hits, row.learnt[1:], strict=True), lambda pair: pair[1]
        ):
            if is_learnt:
                found.setdefault(drill.kind, []).append([hit for hit, _ in turn])
    return {kind: _share(turns) for kind, turns in found.items()}


def _share(turns: list[list[bool]]) -> Share:
    tokens = [hit for turn in turns for hit in turn]
    return Share(sum(map(all, turns)), len(turns), sum(tokens) / len(tokens))


if __name__ == "__main__":
    main()
