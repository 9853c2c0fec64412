"""A checkpoint's tokenizer and chat template, as the metadata of a GGUF file.

Two families can be written: byte-level merges whose way of cutting words has a name, and SentencePiece's merges.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from llmhost.core.errors import ModelUnavailable
from llmhost.engines.llama.pre_tokenizers import rule_like
from llmhost.text.template import ChatTemplate
from llmhost.text.tokenizer import FileTokenizer, load_tokenizer, named_tokens

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens, as a GGUF file counts them."""

KEY = "tokenizer.ggml"
_ENDS = ("eos", "eot", "eom")
"""The places that a file has for tokens that end an answer."""


def vocabulary(folder: Path, rows: int) -> Iterator[tuple[str, Any]]:
    """Keys and values of the metadata; `rows` is how many ids the model has. Raises ModelUnavailable."""
    loaded = load_tokenizer(folder)
    tokenizer = loaded.backend
    model = msgspec.json.decode(tokenizer.to_str())["model"]
    if model["type"] != "BPE":
        raise ModelUnavailable(
            f"{folder} has a tokenizer of type {model['type']}; those of type BPE can be written to GGUF files."
        )
    if tokenizer.get_vocab_size() > rows:
        raise ModelUnavailable(
            f"{folder} has {tokenizer.get_vocab_size()} tokens, and its model {rows} ids for them."
        )
    tokens = list(_tokens(tokenizer, rows))
    merges = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"]]
    if model.get("byte_fallback"):
        yield from _sentencepiece(tokenizer, model, tokens, merges)
    else:
        yield from _byte_level(folder, tokenizer, tokens, merges)
    yield from _ends(loaded, named_tokens(folder))
    if loaded.template is not None:
        yield from _templates(loaded.template)


def _tokens(tokenizer: Tokenizer, rows: int) -> Iterator[tuple[str, int]]:
    """Each id's spelling and kind."""
    added = tokenizer.get_added_tokens_decoder()
    for token in range(rows):
        text = tokenizer.id_to_token(token)
        if text is None:
            yield f"[PAD{token}]", UNUSED
        elif token in added:
            yield text, CONTROL if added[token].special else USER_DEFINED
        else:
            yield text, NORMAL


def _byte_level(
    folder: Path, tokenizer: Tokenizer, tokens: list[tuple[str, int]], merges: list[list[str]]
) -> Iterator[tuple[str, Any]]:
    rule = rule_like(tokenizer)
    if rule is None:
        raise ModelUnavailable(
            f"{folder} cuts text into words in a way that has no name in GGUF files, so it can't be written."
        )
    yield f"{KEY}.model", "gpt2"
    yield f"{KEY}.pre", rule.names[0]
    yield f"{KEY}.tokens", [text for text, _ in tokens]
    yield f"{KEY}.token_type", [kind for _, kind in tokens]
    yield f"{KEY}.merges", [f"{left} {right}" for left, right in merges]


def _sentencepiece(
    tokenizer: Tokenizer,
    model: Mapping[str, Any],
    tokens: list[tuple[str, int]],
    merges: list[list[str]],
) -> Iterator[tuple[str, Any]]:
    """Merges become scores: what is merged first has the highest."""
    first: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        first.setdefault(left + right, rank)
    unknown = model.get("unk_token")
    kinds, scores = [], []
    for text, kind in tokens:
        is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        kinds.append(BYTE if is_byte else UNKNOWN if text == unknown else kind)
        scores.append(-float(first.get(text, len(merges))))
    yield f"{KEY}.model", "llama"
    yield f"{KEY}.pre", "default"
    yield f"{KEY}.tokens", [text for text, _ in tokens]
    yield f"{KEY}.scores", scores
    yield f"{KEY}.token_type", kinds
    bare = tokenizer.encode("a", add_special_tokens=False).tokens
    yield f"{KEY}.add_space_prefix", bool(bare) and bare[0].startswith("▁")


def _templates(template: ChatTemplate) -> Iterator[tuple[str, Any]]:
    others = [name for name in template.sources if name != "default"]
    for name, text in template.sources.items():
        yield "tokenizer.chat_template" + ("" if name == "default" else f".{name}"), text
    if others:
        yield "tokenizer.chat_templates", others


def _ends(loaded: FileTokenizer, texts: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Tokens at the beginning and the end: which they are, and whether a plain text gets them."""
    tokenizer = loaded.backend
    named = {
        name.removesuffix("_token"): token
        for name, text in texts.items()
        if (token := tokenizer.token_to_id(text)) is not None
    }
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    before, after = whole[: whole.index(bare[0])], whole[whole.index(bare[0]) + len(bare) :]
    begins = before[0] if before else named.get("bos")
    ends = dict.fromkeys([named["eos"]] if "eos" in named else [])
    ends |= dict.fromkeys(sorted(loaded.eos_ids))
    if begins is not None:
        yield f"{KEY}.bos_token_id", begins
    for name, token in zip(_ENDS, ends, strict=False):
        yield f"{KEY}.{name}_token_id", token
    for name, key in (("unk", "unknown"), ("pad", "padding"), ("sep", "seperator")):
        if name in named:
            yield f"{KEY}.{key}_token_id", named[name]
    yield f"{KEY}.add_bos_token", bool(before)
    yield f"{KEY}.add_eos_token", bool(after)
