"""Trains the tiny embedder from scratch: `python -m llmhost.engines.builtin.train_embed`.

A BERT of three small layers learns that the ways to ask one thing, and the answer to it, belong together, and that
everything else in the batch does not. Single-threaded it takes some minutes. The last word has a set of rewordings
that training never sees, measured on the bfloat16 weights as they are written.
"""

import argparse
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, BertModel

from llmhost.engines.builtin import corpus, course, variety
from llmhost.engines.builtin.corpus import Pair
from llmhost.engines.builtin.course import CLS, CONTEXT, SEP, Course

HERE = Path(__file__).parent / "tiny-embed"
VOCAB = 2048
PAIRS_PER_BATCH = 64
TEMPERATURE = 0.05
MOST_TOKENS = 48
"""What is longer is cut in training."""
LEAST_FOUND = 0.5
"""Rewordings that must find their question, else nothing is written."""

SAME = (
    ("stop", "shut down", "end", "halt"),
    ("start", "run", "launch", "begin"),
    ("make", "create", "set up", "get"),
    ("show", "list", "see", "display", "give"),
    ("price", "cost", "charge"),
    ("limit", "cap", "restrict"),
    ("answer", "reply", "response"),
    ("put", "place", "store", "keep"),
    ("need", "require", "have to have"),
    ("change", "alter", "set", "modify"),
    ("happens", "occurs", "goes on"),
    ("is allowed to", "may", "can"),
    ("use", "work with", "employ"),
    ("big", "large", "long"),
    ("quick", "fast"),
    ("folder", "directory", "place"),
    ("find", "look up", "locate", "know"),
    ("download", "fetch", "pull"),
    ("delete", "remove", "revoke"),
    ("add", "serve", "bring in"),
)
"""Words that mean nearly the same where these texts use them."""
FRAMES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"what (?:is|are) (.+)",
        (
            "explain {}",
            "define {}",
            "tell me about {}",
            "{}",
            "what do you mean by {}",
            "describe {}",
        ),
    ),
    (
        r"what does (.+) do",
        (
            "{}",
            "what is {} for",
            "purpose of {}",
            "explain {}",
            "when do I use {}",
            "the job of {}",
        ),
    ),
    (r"what does (.+) mean", ("explain {}", "meaning of {}", "{}", "I get {}", "why {}")),
    (
        r"how do i (.+)",
        ("{}", "how can I {}", "how to {}", "I want to {}", "I need to {}", "steps to {}"),
    ),
    (r"how (?:is|are) (.+?) (\w+)", ("in what way is {} {}", "the way that {} is {}", "{} {}")),
    (r"can (?:i|a) (.+)", ("is it possible to {}", "may I {}", "could I {}", "am I able to {}")),
    (
        r"what happens (?:when|if|with|at|to) (.+)",
        ("{}", "{}, what then", "{}, what now", "suppose {}"),
    ),
    (r"when does (.+)", ("at which time does {}", "the moment when {}", "when will {}")),
    (r"where (?:do|are|is) (.+)", ("in which place {}", "which folder {}", "location of {}")),
    (r"which (.+)", ("what {}", "name the {}", "tell me which {}", "possible {}")),
    (r"who (?:may|are|made) (.+)", ("which one may {}", "{} by whom", "name who {}")),
    (r"does (.+)", ("will {}", "is it so that {}", "{}")),
    (
        r"(?:write|say|tell|give|show) (?:me )?(.+)",
        ("{} please", "I want {}", "can I have {}", "{}"),
    ),
)
"""Other forms of a question: `{}` stands for what the expression before it caught."""


@dataclass(frozen=True, slots=True)
class Found:
    """How often the nearest text is the right one."""

    questions: float
    """Share of rewordings whose nearest question is their own."""
    answers: float
    """Share of them whose nearest answer is."""
    count: int
    among: int


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the built-in tiny embedder from scratch.")
    course.add_options(parser, HERE, steps=900, minutes=7.0)
    options = parser.parse_args()
    console = Console()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    start_s = time.monotonic()

    tokenizer = train_tokenizer()
    model = BertModel(_config(), add_pooling_layer=False)
    train(model, tokenizer, Course.of(options), console)
    rounded = model.to(torch.bfloat16).to(torch.float32).eval()
    found = measure(rounded, tokenizer)
    console.print(f"{found}, {time.monotonic() - start_s:.0f} s")
    if found.questions < LEAST_FOUND and not options.force:
        raise SystemExit(f"below {LEAST_FOUND:.0%}: nothing written (--force writes it anyway)")
    write(rounded, tokenizer, options.out)


def train_tokenizer() -> Tokenizer:
    return course.train_tokenizer(_texts(), VOCAB, pair=f"{CLS} $A {SEP} $B:1 {SEP}:1")


def _texts() -> Iterator[str]:
    for pair in (*corpus.pairs(), *corpus.unknown()):
        yield from (*pair.questions, pair.answer)
    yield from (word for words in SAME for word in words)


def _config() -> BertConfig:
    return BertConfig(
        vocab_size=VOCAB,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=CONTEXT,
        pad_token_id=VOCAB - 3,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )


def train(model: BertModel, tokenizer: Tokenizer, plan: Course, console: Console) -> None:
    rng = random.Random(plan.seed)
    course.follow(
        model,
        tokenizer,
        plan,
        console,
        loss=lambda: _loss(model, tokenizer, _batch(rng)),
        told=lambda: str(measure(model, tokenizer)),
    )


def _batch(rng: random.Random) -> list[tuple[str, str]]:
    """Distinct pairs, each as two texts that belong together: two ways to ask, or a question and its answer."""
    chosen = rng.sample(corpus.pairs(), PAIRS_PER_BATCH)
    return [(_asked(pair, rng), _other(pair, rng)) for pair in chosen]


def _other(pair: Pair, rng: random.Random) -> str:
    if rng.random() < 0.3:
        return pair.answer
    return rng.choice(pair.questions) if rng.random() < 0.5 else _asked(pair, rng)


def _asked(pair: Pair, rng: random.Random) -> str:
    """A question in another form, with other words, or with a word less."""
    text = rng.choice(pair.questions)
    if rng.random() < 0.6:
        text = _reframed(text, rng)
    if rng.random() < 0.6:
        text = _with_synonyms(text, rng)
    return variety.reworded(" ".join(_careless(text.split(), rng)), rng)


def _careless(words: list[str], rng: random.Random) -> list[str]:
    """A word less, two the other way round, one where there are many or the reverse."""
    if len(words) > 3 and rng.random() < 0.4:
        del words[rng.randrange(len(words))]
    if len(words) > 2 and rng.random() < 0.2:
        place = rng.randrange(len(words) - 1)
        words[place : place + 2] = words[place + 1], words[place]
    if rng.random() < 0.4:
        place = rng.randrange(len(words))
        word = words[place].rstrip("?")
        words[place] = word[:-1] if word.endswith("s") else f"{word}s"
    return words


def _reframed(text: str, rng: random.Random) -> str:
    for pattern, forms in FRAMES:
        if match := re.fullmatch(pattern, text.rstrip("?"), re.IGNORECASE):
            return rng.choice(forms).format(*match.groups())
    return text


def _with_synonyms(text: str, rng: random.Random) -> str:
    for words in SAME:
        for word in words:
            if rng.random() < 0.7 and re.search(rf"\b{word}\b", text):
                return re.sub(rf"\b{word}\b", rng.choice(words), text, count=1)
    return text


def _loss(model: BertModel, tokenizer: Tokenizer, batch: list[tuple[str, str]]) -> Tensor:
    """Each text must find its partner among those of the others, both ways round."""
    ours = embed(model, tokenizer, [one for one, _ in batch])
    theirs = embed(model, tokenizer, [other for _, other in batch])
    likeness = ours @ theirs.T / TEMPERATURE
    right = torch.arange(len(batch))
    return (F.cross_entropy(likeness, right) + F.cross_entropy(likeness.T, right)) / 2


def embed(model: BertModel, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """[texts, hidden]: means of the last layer's tokens, of length 1."""
    ids, mask = course.padded(tokenizer, texts, MOST_TOKENS)
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    pooled = (states * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    return F.normalize(pooled, dim=-1)


def measure(model: BertModel, tokenizer: Tokenizer) -> Found:
    """By the rewordings that are kept for it."""
    model.eval()
    tokenizer.model.dropout = None
    pairs = corpus.pairs()
    place = {question: i for i, pair in enumerate(pairs) for question in pair.questions}
    kept = corpus.rewordings()
    right = torch.tensor([place[question] for question, _ in kept])
    with torch.inference_mode():
        asked = embed(model, tokenizer, [reworded for _, reworded in kept])
        questions = embed(model, tokenizer, [pair.questions[0] for pair in pairs])
        answers = embed(model, tokenizer, [pair.answer for pair in pairs])
    return Found(
        questions=float(((asked @ questions.T).argmax(1) == right).float().mean()),
        answers=float(((asked @ answers.T).argmax(1) == right).float().mean()),
        count=len(kept),
        among=len(pairs),
    )


def write(model: BertModel, tokenizer: Tokenizer, out: Path) -> None:
    """The folder as sentence-transformers would write it."""
    course.write(model, tokenizer, out)
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    course.write_json(out / "modules.json", [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ])  # fmt: skip
    (out / "1_Pooling").mkdir(exist_ok=True)
    mean = {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_mean_tokens": True}
    course.write_json(out / "1_Pooling" / "config.json", mean)
    course.write_json(out / "sentence_bert_config.json", {"max_seq_length": CONTEXT})


if __name__ == "__main__":
    main()
