"""Conversations as rows of token ids, and rows as batches: what training and its checks have in common."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmhost.engines.builtin.variety import Conversation

BATCH_TOKENS = 2048
ASSISTANT_TURN = re.compile(r"(?<=<\|im_start\|>assistant\n)(.*?<\|im_end\|>)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one conversation, and which of them the model has to write itself."""

    ids: list[int]
    learnt: list[bool]


def row_of(conversation: Conversation, tokenizer: Any) -> Row:
    text = tokenizer.apply_chat_template(
        conversation.messages, tools=conversation.tools, tokenize=False
    )
    ids: list[int] = []
    learnt: list[bool] = []
    for number, part in enumerate(ASSISTANT_TURN.split(text)):
        part_ids = tokenizer.encode(part, add_special_tokens=False)
        ids += part_ids
        learnt += [number % 2 == 1] * len(part_ids)
    return Row(ids, learnt)


def grouped(rows: list[Row], tokens: int = BATCH_TOKENS) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        longest = max(len(other.ids) for other in (*batch, row))
        if batch and longest * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def padded(rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Padded on the right, which causal attention never sees: no mask is needed."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])
    learnt = torch.tensor([row.learnt + [False] * (width - len(row.ids)) for row in rows])
    return ids, learnt
