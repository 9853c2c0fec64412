"""The tokenizer in a GGUF file, as an object of the `tokenizers` library.

So text, stop strings, grammars and masks work on a GGUF file as they do on a tokenizer.json. Two families are read:
byte-level merges (GPT-2, Llama 3, Qwen) and SentencePiece's (Llama 2, Mistral, Gemma), whose merges are found from the
scores. Texts get the ids that llama.cpp gives them, by llama.cpp itself where a way of cutting words is not known here.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from llmhost.core.errors import ModelUnavailable
from llmhost.engines.llama.header import Header
from llmhost.engines.llama.pre_tokenizers import ANY, Rule, rule_named
from llmhost.text.template import ChatTemplate
from llmhost.text.tokenizer import FileTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

ENDS = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<｜end▁of▁sentence｜>",
        "[e~[",
    }
)
"""Tokens that end an answer whatever the file says, for many a file says too little."""

_NOT_ENDS = ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"})
"""With both of a pair in the vocabulary, `<|end|>` parts a turn and does not end it."""

_KEY = "tokenizer.ggml"
_OF_ENCODERS = {
    "bert": {"bos": 101, "seperator": 102, "unknown": 100},
    "t5": {"eos": 1, "unknown": 2},
}
"""Kinds of vocabularies of encoders, and the tokens that llama.cpp takes for granted; it spells them so."""
_NO_BYTES = frozenset({"gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace"})
"""Ways of cutting words whose vocabularies spell text as it is."""


def load_gguf_tokenizer(header: Header) -> FileTokenizer:
    """Raises ModelUnavailable for a vocabulary of a kind that is not read here, by name."""
    source = _Source(header)
    family = source.text("model")
    rule = rule_named(source.text("pre"))
    if family == "gpt2":
        tokenizer = _byte_level(source, rule)
        adds_bos = rule is not None and rule.adds_bos
    elif family == "llama":
        tokenizer, rule, adds_bos = _sentencepiece(source), ANY, True
    elif family in _OF_ENCODERS:
        return _encoders_tokenizer(source, family)
    else:
        raise ModelUnavailable(
            f"{header.path} has a vocabulary of the kind {family!r}; 'gpt2' (byte-level merges), 'llama'"
            " (SentencePiece's merges), 'bert' and 't5' are read."
        )
    _add_special(tokenizer, source)
    _add_ends_of_text(tokenizer, source, adds_bos)
    eos_ids, template = frozenset(_eos_ids(source)), _template(source)
    if rule is None:
        from llmhost.engines.llama.native_tokenizer import NativeTokenizer

        return NativeTokenizer(
            tokenizer, source.path, eos_ids=eos_ids, template=template, tells_pairs_apart=False
        )
    return FileTokenizer(tokenizer, eos_ids=eos_ids, template=template, tells_pairs_apart=False)


def _encoders_tokenizer(source: "_Source", family: str) -> FileTokenizer:
    """Ids by llama.cpp itself; here is the way back to text alone. Raises ModelUnavailable."""
    from llmhost.engines.llama.native_tokenizer import NativeTokenizer

    wanted = dict(_OF_ENCODERS[family])
    if source.says("add_bos_token", False):
        wanted.setdefault("bos", -1)
    for name, usual in wanted.items():
        token = source.metadata.get(f"{_KEY}.{name}_token_id", usual)
        if type(token) is not int or not 0 <= token < len(
            source.tokens
        ):  # llama.cpp would end the process
            raise ModelUnavailable(f"{source.path} has no token for {name!r} in its vocabulary.")
    unknown = source.token("unknown")
    tokenizer = Tokenizer(
        models.WordLevel(source.vocabulary(), unk_token=source.tokens[unknown or 0])
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _add_special(tokenizer, source)
    return NativeTokenizer(
        tokenizer, source.path, tells_pairs_apart=False, doubles_end=family == "t5"
    )


class _Source:
    """A header's vocabulary, checked."""

    def __init__(self, header: Header) -> None:
        self.path = header.path
        self.metadata = header.metadata
        tokens = header.metadata.get(f"{_KEY}.tokens")
        if not isinstance(tokens, list) or not tokens:
            raise ModelUnavailable(
                f"{header.path} has no vocabulary, so it can't read or write text."
            )
        self.tokens: list[str] = [text or f"[EMPTY_{token}]" for token, text in enumerate(tokens)]
        self.ids = {text: token for token, text in enumerate(self.tokens)}
        if len(self.ids) < len(self.tokens):
            raise ModelUnavailable(f"{header.path} has a token twice in its vocabulary.")
        self.kinds = self._numbers("token_type", NORMAL)
        self.scores = self._numbers("scores", 0.0)
        self.used = 1 + max(
            (token for token, kind in enumerate(self.kinds) if kind != UNUSED), default=0
        )

    def text(self, key: str) -> str:
        value = self.metadata.get(f"{_KEY}.{key}", "")
        return value if isinstance(value, str) else ""

    def strings(self, key: str) -> list[str]:
        value = self.metadata.get(f"{_KEY}.{key}")
        return value if isinstance(value, list) else []

    def says(self, key: str, usual: bool) -> bool:
        value = self.metadata.get(f"{_KEY}.{key}", usual)
        return value if isinstance(value, bool) else usual

    def token(self, name: str) -> int | None:
        value = self.metadata.get(f"{_KEY}.{name}_token_id")
        return value if type(value) is int and 0 <= value < len(self.tokens) else None

    def vocabulary(self) -> dict[str, int]:
        """Ids after the last token that stands for something are padding."""
        return {text: token for token, text in enumerate(self.tokens[: self.used])}

    def _numbers(self, key: str, usual: float) -> list[Any]:
        value = self.metadata.get(f"{_KEY}.{key}")
        if value is None:
            return [usual] * len(self.tokens)
        found = value.tolist() if hasattr(value, "tolist") else []
        if len(found) < len(self.tokens):
            raise ModelUnavailable(
                f"{self.path} has {len(self.tokens)} tokens, and {key!r} for {len(found)} of them."
            )
        return list(found)


def _byte_level(source: _Source, rule: Rule | None) -> Tokenizer:
    """Without a rule it is for the way from ids to text alone. Raises ModelUnavailable."""
    name = source.text("pre")
    if name in _NO_BYTES:
        raise ModelUnavailable(
            f"{source.path} has byte-level merges by its kind, and by its way of cutting words ({name!r}) none."
        )
    vocabulary = source.vocabulary()
    pairs = [_pair(merge) for merge in source.strings("merges")]
    merges = [pair for pair in pairs if _fits(pair, vocabulary)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            ignore_merges=rule is not None and rule.whole_words,
        )
    )
    if rule is not None:
        tokenizer.pre_tokenizer = rule.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pair(merge: str) -> tuple[str, str]:
    """Parted by the first space that does not begin it."""
    at = merge.find(" ", 1)
    return merge[:at], merge[at + 1 :]


def _fits(pair: tuple[str, str], vocabulary: Mapping[str, int]) -> bool:
    left, right = pair
    return left in vocabulary and right in vocabulary and left + right in vocabulary


def _sentencepiece(source: _Source) -> Tokenizer:
    vocabulary = source.vocabulary()
    unknown = source.token("unknown")
    unknown_text = source.tokens[0 if unknown is None else unknown]
    has_bytes = "<0x00>" in vocabulary
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=list(_merges(source)),
            unk_token=unknown_text if unknown_text in vocabulary else None,
            fuse_unk=True,
            byte_fallback=has_bytes,
        )
    )
    prefix = source.says("add_space_prefix", True)
    tokenizer.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if prefix else []), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])]
    )
    return tokenizer


def _merges(source: _Source) -> Iterator[tuple[str, str]]:
    """Every way to make a token of two others, those of the highest score first: what SentencePiece does with them."""
    by_score: defaultdict[float, list[tuple[str, str]]] = defaultdict(list)
    ids, kinds, scores = source.ids, source.kinds, source.scores
    for token in range(source.used):
        text = source.tokens[token]
        if kinds[token] != NORMAL or len(text) < 2:
            continue
        ways = [
            (text[:cut], text[cut:])
            for cut in range(1, len(text))
            if text[:cut] in ids and text[cut:] in ids
        ]
        by_score[scores[token]] += sorted(ways, key=lambda way: (ids[way[0]], ids[way[1]]))
    for score in sorted(by_score, reverse=True):
        yield from by_score[score]


def _add_special(tokenizer: Tokenizer, source: _Source) -> None:
    """Make special what no text is written with, and whole what the vocabulary calls its users' own."""
    ends = _end_texts(source)
    tokenizer.add_tokens(
        [
            AddedToken(text, special=kind != USER_DEFINED or text in ends, normalized=False)
            for text, kind in zip(source.tokens[: source.used], source.kinds, strict=False)
            if kind in (CONTROL, UNKNOWN, USER_DEFINED) or text in ends
        ]
    )


def _add_ends_of_text(tokenizer: Tokenizer, source: _Source, adds_bos: bool) -> None:
    bos = source.token("bos") if source.says("add_bos_token", adds_bos) else None
    eos = source.token("eos") if source.says("add_eos_token", False) else None
    before = [source.tokens[bos]] if bos is not None else []
    after = [source.tokens[eos]] if eos is not None else []
    if not before and not after:
        return
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B", *after],
        special_tokens=[(text, source.ids[text]) for text in {*before, *after}],
    )


def _end_texts(source: _Source) -> set[str]:
    found = {text for text in ENDS if text in source.ids}
    if any(pair <= found for pair in _NOT_ENDS):
        found.discard("<|end|>")
    return found


def _eos_ids(source: _Source) -> Iterator[int]:
    for name in ("eos", "eot", "eom"):
        if (token := source.token(name)) is not None:
            yield token
    for text in _end_texts(source):
        yield source.ids[text]


def _template(source: _Source) -> ChatTemplate | None:
    key = "tokenizer.chat_template"
    sources = {}
    if isinstance(default := source.metadata.get(key), str):
        sources["default"] = default
    names = source.metadata.get("tokenizer.chat_templates")
    for name in names if isinstance(names, list) else ():
        if isinstance(text := source.metadata.get(f"{key}.{name}"), str):
            sources[name] = text
    named = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    special = {
        f"{theirs}_token": source.tokens[token]
        for ours, theirs in named.items()
        if (token := source.token(ours)) is not None
    }
    return ChatTemplate(sources, special) if sources else None
