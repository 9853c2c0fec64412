"""Text to ids by llama.cpp itself, for vocabularies whose way of cutting words is more than patterns.

Everything else (text, stop strings, grammars) needs the vocabulary's bytes alone, and is as for other files.
"""

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llmhost.core.errors import ModelUnavailable
from llmhost.engines.llama.library import listening, llama
from llmhost.text.pairs import fit
from llmhost.text.tokenizer import FileTokenizer

MORE_TOKENS = 8
"""Than a text has bytes, which is as many as most vocabularies need at the most."""


class NativeTokenizer(FileTokenizer):
    """A vocabulary that llama.cpp holds, too. Any thread may use it."""

    def __init__(
        self, tokenizer: Tokenizer, path: Path, *, doubles_end: bool = False, **facts: Any
    ) -> None:
        """`doubles_end`: what ends a text stands between two of them twice, as RoBERTa was trained.

        Raises ModelUnavailable when llama.cpp does not read the file's vocabulary either.
        """
        self._ids = _ids_by_library(path, self)
        self._before, self._after = _around(self._ids)
        self._between = self._after * (2 if doubles_end else 1) or self._before
        super().__init__(tokenizer, **facts)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self._ids(text, add_special_tokens)

    def encode_whole(
        self,
        text: str,
        second: str | None = None,
        *,
        most_tokens: int | None = None,
        most_second: int | None = None,
    ) -> tuple[list[int], int | None]:
        texts = [self._ids(each, False) for each in (text, second) if each is not None]
        if second is not None and most_second is not None:
            del texts[1][most_second:]
        around = [self._before, self._after, *([self._between] if second is not None else [])]
        if most_tokens is not None:
            lengths = [len(each) for each in texts]
            room = most_tokens - sum(map(len, around))
            for each, kept in zip(texts, fit(lengths[0], sum(lengths[1:]), room), strict=False):
                del each[kept:]
        whole = [*self._before, *texts[0]]
        for each in texts[1:]:
            whole += [*self._between, *each]
        return [*whole, *self._after], None


def _around(ids: Callable[[str, bool], list[int]]) -> tuple[list[int], list[int]]:
    """What a vocabulary puts before a text and after it."""
    bare, whole = ids("a", False), ids("a", True)
    at = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), len(whole))
    return whole[:at], whole[at + len(bare) :]


def _ids_by_library(path: Path, owner: object) -> Callable[[str, bool], list[int]]:
    """llama.cpp's way from a text to ids; its copy of the vocabulary is there for as long as `owner` is."""
    library = llama()
    params = library.llama_model_default_params()
    params.vocab_only = True
    said: list[str] = []
    with listening(said.append):
        model = library.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        why = next((line.strip() for line in said if "error" in line), "it does not say why")
        raise ModelUnavailable(f"llama.cpp can't read the vocabulary of {path} ({why}).")
    weakref.finalize(owner, library.llama_model_free, model)
    vocabulary = library.llama_model_get_vocab(model)

    def ids(text: str, add_special: bool) -> list[int]:
        raw = text.encode("utf-8", "replace")
        count = len(raw) + MORE_TOKENS
        while True:
            room = (library.llama_token * count)()
            found = library.llama_tokenize(
                vocabulary, raw, len(raw), room, count, add_special, True
            )
            if found >= 0:
                return list(room[:found])
            count = -found  # some letters become many before they are cut

    return ids
