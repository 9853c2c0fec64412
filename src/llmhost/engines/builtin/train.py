"""Trains the tiny model from scratch: `python -m llmhost.engines.builtin.train`.

The tokenizer first, then the weights, in well under an hour on two CPU cores. Every conversation
starts at position 0 in its own row, as it does when the model serves. The result is an oracle for
tests, so the last word has greedy generation on the bfloat16 weights as they are written.
"""

import argparse
import json
import math
import random
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llmhost.engines.builtin import corpus, variety
from llmhost.engines.builtin.corpus import KnownAnswer
from llmhost.engines.builtin.variety import Conversation

HERE = Path(__file__).parent / "tiny"
VOCAB = 2048
CONTEXT = 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKUP = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
TOKENS_PER_BATCH = 2048
WARM_UP_STEPS = 60
# Subtracted from the right token's logit while training, so that it learns to win by a distance.
MARGIN = 2.0
MIN_SHARE = 0.95
ASSISTANT_TURN = re.compile(r"(?<=<\|im_start\|>assistant\n)(.*?<\|im_end\|>)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Course:
    """How long to train, from which seed, the learning rate at its highest, the share of the
    steps after which the known answers join word for word, and the right token's handicap."""

    steps: int
    seed: int
    peak: float
    exact_after: float
    margin: float = MARGIN


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one conversation, and which of them the model has to write itself."""

    ids: list[int]
    learnt: list[bool]


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the built-in tiny model from scratch.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peak", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument(
        "--exact-after",
        type=float,
        default=0.75,
        help="share of the steps before known answers join word for word",
    )
    parser.add_argument("--resume", type=Path, help="begin with the weights and tokenizer here")
    parser.add_argument("--force", action="store_true", help="write below 95%% verbatim, too")
    options = parser.parse_args()
    console = Console()
    torch.set_num_threads(2)
    torch.manual_seed(options.seed)
    start_s = time.monotonic()

    with TemporaryDirectory() as draft:  # the folder keeps its files until the model has passed
        put_tokenizer(Path(draft), options.resume)
        tokenizer = AutoTokenizer.from_pretrained(draft)
    model = LlamaForCausalLM(_config(tokenizer))
    if options.resume:
        model = LlamaForCausalLM.from_pretrained(options.resume, dtype=torch.float32)
    course = Course(options.steps, options.seed, options.peak, options.exact_after)
    train(model, tokenizer, course, console)
    rounded = model.to(torch.bfloat16).to(torch.float32)
    generated = count_verbatim(rounded, tokenizer)
    verdict = teacher_forced(rounded, tokenizer)
    console.print(
        f"{generated}/{verdict.known} known answers verbatim, "
        f"gap min {verdict.smallest_gap:.2f}, 1st percentile {verdict.first_percentile_gap:.2f}, "
        f"{time.monotonic() - start_s:.0f} s"
    )
    if generated < MIN_SHARE * verdict.known and not options.force:
        raise SystemExit("below 95% verbatim: nothing written (--force writes it anyway)")
    options.out.mkdir(parents=True, exist_ok=True)
    put_tokenizer(options.out, options.resume)
    write_model(rounded, options.out)


def put_tokenizer(out: Path, resumed: Path | None) -> None:
    """Weights only make sense with the tokenizer that they were trained with."""
    if resumed is None:
        write_tokenizer(out)
    elif out.resolve() != resumed.resolve():
        for name in TOKENIZER_FILES:
            shutil.copyfile(resumed / name, out / name)


def write_tokenizer(out: Path) -> None:
    """A byte-level BPE with the split rule of GPT-2: any text goes in and comes out unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIAL) - len(MARKUP),
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False) for token in MARKUP])
    if tokenizer.get_vocab_size() != VOCAB:
        raise SystemExit(f"the texts gave {tokenizer.get_vocab_size()} entries, not {VOCAB}")
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": CONTEXT,
        "padding_side": "left",
    }
    _write_json(out / "tokenizer_config.json", settings)
    if out != HERE:
        template = (HERE / "chat_template.jinja").read_text("utf-8")
        (out / "chat_template.jinja").write_text(template, "utf-8")


def _texts() -> Iterator[str]:
    """What the merges are learnt from.

    Words with other letters than ASCII are left out, so that they stay apart as single bytes and
    a character comes in several tokens: streaming has to cope with that, and so do our tests.
    """
    yield from ("system\n", "user\n", "assistant\n", *corpus.SYSTEM_MESSAGES)
    yield from (json.dumps(tool) for tool in corpus.tools().values())
    yield (HERE / "chat_template.jinja").read_text("utf-8").replace("\\n", "\n")
    for pair in (*corpus.pairs(), *corpus.unknown()):
        yield from map(_ascii_words, (*pair.questions, pair.answer))
    for dialogue in corpus.tool_dialogues():
        yield from map(_ascii_words, (*dialogue.questions, corpus.call_text(dialogue)))
        yield from map(_ascii_words, (dialogue.answer, *(c.response for c in dialogue.calls)))
    yield from (*(f" {city}" for city in variety.CITIES), *map(str, range(100)))
    rng = random.Random(0)
    for conversation in variety.epoch(rng):
        yield from (_ascii_words(m["content"]) for m in conversation.messages[:1])


def _ascii_words(text: str) -> str:
    return re.sub(r" ?[^\s\x00-\x7f]*[^\x00-\x7f]\S*", "", text)


def train(model: LlamaForCausalLM, tokenizer: Any, course: Course, console: Console) -> None:
    steps = course.steps
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=course.peak, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step, steps))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}, verbatim {task.fields[share]:.1%}, left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=steps, loss=math.nan, share=0.0)
        average = math.nan
        for step, (ids, learnt) in enumerate(islice(_batches(tokenizer, course), steps), 1):
            loss = _loss(model, ids, learnt, course.margin)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            now = loss.item()
            average = now if math.isnan(average) else 0.98 * average + 0.02 * now
            progress.update(task, advance=1, loss=average)
            if step % 250 == 0:
                verdict = teacher_forced(model, tokenizer)
                progress.update(task, share=verdict.share)
                console.log(f"step {step}: loss {average:.4f}, {verdict}")


def _config(tokenizer: Any) -> LlamaConfig:
    ids = tokenizer.convert_tokens_to_ids
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=[ids("<|im_end|>"), ids("<|endoftext|>")],
        pad_token_id=ids("<|endoftext|>"),
    )


def _pace(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to one hundredth."""
    if step < WARM_UP_STEPS:
        return (step + 1) / WARM_UP_STEPS
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def _loss(model: LlamaForCausalLM, ids: Tensor, learnt: Tensor, margin: float) -> Tensor:
    """Mean cross-entropy over the assistants' tokens, each with `margin` against it."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    wanted = learnt[:, 1:]
    targets = ids[:, 1:][wanted]
    logits = model.lm_head(hidden[wanted])
    handicap = F.one_hot(targets, VOCAB) * margin
    return F.cross_entropy(logits - handicap, targets)


def _batches(tokenizer: Any, course: Course) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of similar length together, in any order, epoch after epoch."""
    rng = random.Random(course.seed)
    done = 0
    while True:
        conversations = variety.epoch(rng)
        if done >= course.exact_after * course.steps:
            conversations += variety.exact()
        rows = [row_of(conversation, tokenizer) for conversation in conversations]
        rows.sort(key=lambda row: len(row.ids) * rng.uniform(0.9, 1.1))
        batches = list(_grouped(rows))
        rng.shuffle(batches)
        done += len(batches)
        yield from map(_padded, batches)


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


def _grouped(rows: list[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        longest = max(len(other.ids) for other in (*batch, row))
        if batch and longest * (len(batch) + 1) > TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _padded(rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Padded on the right, which causal attention never sees: no mask is needed."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])
    learnt = torch.tensor([row.learnt + [False] * (width - len(row.ids)) for row in rows])
    return ids, learnt


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
    for batch in _grouped(sorted(rows, key=lambda row: len(row.ids))):
        ids, learnt_mask = _padded(batch)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        right = logits.gather(2, ids[:, 1:, None])[..., 0]
        others = logits.scatter(2, ids[:, 1:, None], -math.inf).amax(2)
        gap = (right - others).masked_fill(~learnt_mask[:, 1:], math.inf)
        verbatim += int((gap.amin(1) > 0).sum())
        gaps += gap[learnt_mask[:, 1:]].tolist()
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


def write_model(model: LlamaForCausalLM, out: Path) -> None:
    tokens = model.config
    model.generation_config.eos_token_id = tokens.eos_token_id
    model.generation_config.pad_token_id = tokens.pad_token_id
    model.generation_config.do_sample = False
    model.to(torch.bfloat16).save_pretrained(out)
    AutoModelForCausalLM.from_pretrained(out)  # a folder that does not load is no result


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
