"""Trains the tiny model from scratch: `python -m llmhost.engines.builtin.train`.

The tokenizer first, then the weights, in well under an hour on two CPU cores. Every conversation
starts at position 0 in its own row, as it does when the model serves. The result is an oracle for
tests, so the last word has greedy generation on the bfloat16 weights as they are written.
"""

import argparse
import copy
import json
import math
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
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

from llmhost.engines.builtin import corpus, drills, guide, variety
from llmhost.engines.builtin.rows import BATCH_TOKENS, grouped, padded, row_of
from llmhost.engines.builtin.verdict import count_verbatim, teacher_forced

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
WARM_UP_STEPS = 60
# Subtracted from the right token's logit while training, so that it learns to win by a distance.
MARGIN = 2.0
MIN_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Course:
    """How long to train, from which seed, the learning rate at its highest, the share of the
    steps after which the known answers join word for word, the right token's handicap, how many
    drills and how many of them that only repeat there are for each time that the texts come round,
    the tokens of a step, and the kinds of the drills, all where none is named."""

    steps: int
    seed: int
    peak: float
    exact_after: float
    margin: float = MARGIN
    drills: int = 0
    repeats: int = 0
    batch_tokens: int = BATCH_TOKENS
    guided: bool = False
    kinds: tuple[str, ...] = ()


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
    parser.add_argument("--drills", type=int, default=0, help="drills in each epoch")
    parser.add_argument(
        "--kinds", nargs="+", default=(), choices=drills.KINDS, help="of drills; all when absent"
    )
    parser.add_argument("--repeats", type=int, default=0, help="plain repetitions in each epoch")
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS, help="tokens of a step")
    parser.add_argument("--guided", action="store_true", help="show attention what is copied")
    parser.add_argument("--keep-every", type=int, help="steps after which OUT/step-N is kept")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", type=Path, help="begin with the weights and tokenizer here")
    parser.add_argument("--force", action="store_true", help="write below 95%% verbatim, too")
    options = parser.parse_args()
    console = Console()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    start_s = time.monotonic()

    with TemporaryDirectory() as draft:  # the folder keeps its files until the model has passed
        put_tokenizer(Path(draft), options.resume)
        tokenizer = AutoTokenizer.from_pretrained(draft)
    model = LlamaForCausalLM(_config(tokenizer))
    if options.resume:
        model = LlamaForCausalLM.from_pretrained(options.resume, dtype=torch.float32)
    course = Course(
        options.steps,
        options.seed,
        options.peak,
        options.exact_after,
        drills=options.drills,
        repeats=options.repeats,
        batch_tokens=options.batch_tokens,
        guided=options.guided,
        kinds=tuple(options.kinds),
    )

    def keep(step: int) -> None:
        if options.keep_every and step % options.keep_every == 0:
            _keep(model, options.out / f"step-{step}", options.resume)

    train(model, tokenizer, course, console, keep)
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


def train(
    model: LlamaForCausalLM,
    tokenizer: Any,
    course: Course,
    console: Console,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    steps = course.steps
    same = guide.canonical(tokenizer) if course.guided else None
    if course.guided:
        model.set_attn_implementation("eager")  # the only one that tells where it looks
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
            loss = _loss(model, ids, learnt, course.margin, same)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            now = loss.item()
            average = now if math.isnan(average) else 0.98 * average + 0.02 * now
            progress.update(task, advance=1, loss=average)
            after(step)
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


def _loss(
    model: LlamaForCausalLM, ids: Tensor, learnt: Tensor, margin: float, same: Tensor | None
) -> Tensor:
    """Mean cross-entropy over the assistants' tokens, each with `margin` against it.

    With `same`, the tokens of equal text, attention is guided as well.
    """
    guided = same is not None
    made = model.model(input_ids=ids[:, :-1], use_cache=False, output_attentions=guided)
    wanted = learnt[:, 1:]
    targets = ids[:, 1:][wanted]
    logits = model.lm_head(made.last_hidden_state[wanted])
    handicap = F.one_hot(targets, VOCAB) * margin
    loss = F.cross_entropy(logits - handicap, targets)
    return loss if same is None else loss + guide.misses(made.attentions, ids, learnt, same)


def _batches(tokenizer: Any, course: Course) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of similar length together, in any order, epoch after epoch."""
    rng = random.Random(course.seed)
    done = 0
    while True:
        conversations = variety.epoch(rng) + drills.epoch(rng, course.drills, course.kinds)
        conversations += drills.epoch(rng, course.repeats, ("repeat",))
        if done >= course.exact_after * course.steps:
            conversations += variety.exact()
        rows = [row_of(conversation, tokenizer) for conversation in conversations]
        rows.sort(key=lambda row: len(row.ids) * rng.uniform(0.9, 1.1))
        batches = list(grouped(rows, course.batch_tokens))
        rng.shuffle(batches)
        done += len(batches)
        yield from map(padded, batches)


def write_model(model: LlamaForCausalLM, out: Path) -> None:
    tokens = model.config
    model.generation_config.eos_token_id = tokens.eos_token_id
    model.generation_config.pad_token_id = tokens.pad_token_id
    model.generation_config.do_sample = False
    model.to(torch.bfloat16).save_pretrained(out)
    AutoModelForCausalLM.from_pretrained(out)  # a folder that does not load is no result


def _keep(model: LlamaForCausalLM, out: Path, resumed: Path | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    put_tokenizer(out, resumed)
    write_model(copy.deepcopy(model), out)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
