"""Small tokenizers of the kinds that published models have, trained here in milliseconds."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llmhost.text.tokenizer import FileTokenizer, load_tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and then it stops.",
    "Größe, naïve café, 你好 世界, привет мир, emoji 🎉 and 👍🏽 too.",
    "def add(left, right):\n    return left + right\n\n# stop here\n",
    "User: hello there\nAssistant: hello, how can I help you today?\n",
] * 3


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<think>", "two words", "Ġé日"])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """As Llama 2 and Mistral have it: a space in front, unknown characters as byte tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=150,
        limit_alphabet=40,
        special_tokens=["<unk>", "<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["▁".join(text.split()) for text in CORPUS], trainer)
    return _with_byte_tokens(tokenizer)


def _with_byte_tokens(tokenizer: Tokenizer) -> Tokenizer:
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    return Tokenizer.from_str(json.dumps(content))


def metaspace() -> Tokenizer:
    """As T5 has it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<unk>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_ends() -> Tokenizer:
    """As the first GPT has it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=250,
        special_tokens=["<unk>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


KINDS = {
    "byte-level": byte_level,
    "sentencepiece": sentencepiece,
    "metaspace": metaspace,
    "word-piece": word_piece,
    "word-ends": word_ends,
}


@cache
def trained(kind: str) -> str:
    """The tokenizer's JSON; a fresh copy is cheap to make from it."""
    return str(KINDS[kind]().to_str())


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[str], Tokenizer]:
    """A fresh `tokenizers.Tokenizer` of a kind, free to be changed."""
    return lambda kind: Tokenizer.from_str(trained(kind))


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A model's folder with a tokenizer of a kind, or one's own; `files` are JSON contents by name."""

    def make(tokenizer: str | Tokenizer, **files: Any) -> Path:
        folder = tmp_path_factory.mktemp("model")
        content = trained(tokenizer) if isinstance(tokenizer, str) else tokenizer.to_str()
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
        for name, value in files.items():
            (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="session")
def load(make_model: Callable[..., Path]) -> Callable[..., FileTokenizer]:
    """The same, loaded."""
    return lambda tokenizer, **files: load_tokenizer(make_model(tokenizer, **files))
