"""How well a model knows its answers word for word: the last word of training, and what tests rely on."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaForCausalLM

from llmhost.engines.builtin import corpus, variety
from llmhost.engines.builtin.corpus import KnownAnswer
from llmhost.engines.builtin.rows import Row, grouped, padded, row_of


@dataclass(frozen=True, slots=True)
class Verdict:
    """How well a model knows its answers. Gaps are in logits, best token against second best."""

    known: int
    verbatim: int
    smallest_gap: float
    first_percentile_gap: float

    @property
    def share(self) -> float:
        return self.verbatim / self.known


@torch.inference_mode()
def teacher_forced(model: LlamaForCausalLM, tokenizer: Any) -> Verdict:
    """Greedy decoding writes an answer exactly when each of its tokens is the best one in turn."""
    rows = []
    for known, conversation in zip(corpus.known_answers(), variety.exact(), strict=True):
        row = row_of(conversation, tokenizer)
        answer = len(tokenizer.encode(known.answer, add_special_tokens=False)) + 1
        # The template ends a turn with a line break after `<|im_end|>`.
        last = len(row.ids) - 1
        learnt = [last - answer <= position < last for position in range(len(row.ids))]
        rows.append(Row(row.ids, learnt))
    gaps: list[float] = []
    verbatim = 0
    for batch in grouped(sorted(rows, key=lambda row: len(row.ids))):
        ids, learnt_mask = padded(batch)
        is_learnt = learnt_mask[:, 1:]
        states = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(states[is_learnt])  # prompts are the most of it
        wanted = ids[:, 1:][is_learnt][:, None]
        right = logits.gather(1, wanted)[:, 0]
        gap = right - logits.scatter(1, wanted, -math.inf).amax(1)
        by_row = torch.full(is_learnt.shape, math.inf).masked_scatter(is_learnt, gap)
        verbatim += int((by_row.amin(1) > 0).sum())
        gaps += gap.tolist()
    gaps.sort()
    return Verdict(len(rows), verbatim, gaps[0], gaps[len(gaps) // 100])


def count_verbatim(model: Any, tokenizer: Any) -> int:
    """How many known answers greedy generation reproduces to the letter."""
    known = corpus.known_answers()
    answers = generate(model, tokenizer, known)
    return sum(text == k.answer for text, k in zip(answers, known, strict=True))


@torch.inference_mode()
def generate(
    model: Any, tokenizer: Any, known: list[KnownAnswer], batch_size: int = 64
) -> list[str]:
    """What the model answers at temperature 0, in the order given."""
    prompts = [
        tokenizer.apply_chat_template(
            k.messages, tools=k.tools, tokenize=False, add_generation_prompt=True
        )
        for k in known
    ]
    lengths = [len(tokenizer.encode(k.answer)) for k in known]
    # Long answers together: a batch takes as many steps as its longest answer.
    order = sorted(range(len(known)), key=lambda i: (lengths[i] // 12, len(prompts[i])))
    texts = [""] * len(known)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        inputs = tokenizer(
            [prompts[i] for i in chosen],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            return_token_type_ids=False,
        )
        limit = max(lengths[i] for i in chosen) + 8
        output = model.generate(**inputs, do_sample=False, max_new_tokens=limit)
        for i, ids in zip(chosen, output[:, inputs["input_ids"].shape[1] :], strict=True):
            texts[i] = tokenizer.decode(ids, skip_special_tokens=True)
    return texts
