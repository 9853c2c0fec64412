"""A tokenizer that needs no files: one id per word. For the fake engine, tests and docs."""

import json
from collections.abc import Mapping, Sequence
from itertools import islice, product
from typing import Any
from zlib import crc32

from llmhost.core.errors import UnsupportedParameter
from llmhost.core.grammar import GrammarSpec
from llmhost.core.ports import NO_MARKS, Marks, TextWatch
from llmhost.core.step import GrammarState
from llmhost.text.detokenise import Detokeniser
from llmhost.text.grammar import Grammars, Vocabulary
from llmhost.text.pairs import fit
from llmhost.text.watch import watch_for

KEPT_WORDS, KEPT_CHARS = 4096, 64
"""So many foreign words are remembered, if they are no longer than that."""
SYLLABLES = tuple(c + v for c in "bdfgklmnprstvzhj" for v in "aeio")


def words(count: int) -> tuple[str, ...]:
    """The first `count` words of a fixed list: two or more syllables each, all of one length."""
    syllables = 2
    while len(SYLLABLES) ** syllables < count:
        syllables += 1
    return tuple(map("".join, islice(product(SYLLABLES, repeat=syllables), count)))


class WordTokenizer:
    """Words of its list have their own ids; any other word gets one by its hash, so decoding is lossy there."""

    marks: Marks = NO_MARKS

    def __init__(self, vocab: int) -> None:
        self._words = words(vocab)
        self._ids = _Ids({word: token for token, word in enumerate(self._words)})
        self._grammars = Grammars(self._vocabulary())

    @property
    def vocab_size(self) -> int:
        return len(self._words)

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(map(self._ids.__getitem__, text.split()))

    def encode_whole(
        self,
        text: str,
        second: str | None = None,
        *,
        most_tokens: int | None = None,
        most_second: int | None = None,
    ) -> tuple[list[int], int | None]:
        ids, others = self.encode(text), [] if second is None else self.encode(second)[:most_second]
        kept = fit(len(ids), len(others), most_tokens)
        return ids[: kept[0]] + others[: kept[1]], None if second is None else kept[0]

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return " ".join(self._words[token] for token in tokens if token < len(self._words))

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """One `role: content` line per message; tools and `kwargs` have no place in it."""
        lines = [f"{message['role']}: {_text(message.get('content'))}" for message in messages]
        return "\n".join([*lines, "assistant:"] if add_generation_prompt else lines)

    def watch(self, stop: Sequence[str] = (), shown: Sequence[str] = ()) -> TextWatch:
        detokeniser = _WordDetokeniser(self._words)
        return watch_for(detokeniser, stop) if stop else detokeniser

    def begins_with_thoughts(self, prompt: Sequence[int]) -> bool:
        return False

    def token_bytes(self, token: int) -> bytes:
        """A word with the space before it, which the text lacks before the first one; empty for unknown ids."""
        return b" " + self._words[token].encode() if token < len(self._words) else b""

    def compile_grammar(self, spec: GrammarSpec) -> None:
        if spec.kind not in ("choice", "regex"):
            raise UnsupportedParameter(
                f"The fake engine has words only, which can't spell what a {spec.kind} asks for."
                " It can be held to a choice or a regex of its words.",
                param=spec.param,
            )
        if spec.kind == "choice":
            self._check_choices(spec)
        self._grammars.compile(spec)

    def grammar(self, spec: GrammarSpec, prompt: Sequence[int] = ()) -> GrammarState:
        return self._grammars.state(spec, prompt)

    def _check_choices(self, spec: GrammarSpec) -> None:
        for choice in json.loads(spec.text):
            if isinstance(choice, str) and self.decode(self.encode(choice)) != choice:
                raise UnsupportedParameter(
                    f"The fake engine can't say {choice!r}: it has its own words only, such as {self._words[0]!r}.",
                    param=spec.param,
                )

    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(
            tokens=lambda: [self.token_bytes(token) for token in range(self.vocab_size)],
            eos_ids=frozenset(),
            encode=self.encode,
            drops_space=True,
            words=self._words,
        )


class _Ids(dict[str, int]):
    """Ids of words. Those of others are remembered while there are few."""

    def __init__(self, known: dict[str, int]) -> None:
        super().__init__(known)
        self._size = len(known)

    def __missing__(self, word: str) -> int:
        token = crc32(word.encode()) % self._size
        if len(self) < self._size + KEPT_WORDS and len(word) < KEPT_CHARS:
            self[word] = token
        return token


class _WordDetokeniser(Detokeniser):
    __slots__ = ("_space", "_words")

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._space = ""

    def push(self, token: int) -> str:
        if token >= len(self._words):
            return ""
        text = self._space + self._words[token]
        self._space = " "
        return text

    def flush(self) -> str:
        return ""


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content or ""
