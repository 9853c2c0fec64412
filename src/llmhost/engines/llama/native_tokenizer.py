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


class NativeTokenizer(FileTokenizer):
    """A vocabulary that llama.cpp holds, too. Any thread may use it."""

    def __init__(self, tokenizer: Tokenizer, path: Path, **facts: Any) -> None:
        """Raises ModelUnavailable when llama.cpp does not read the file's vocabulary either."""
        self._ids = _ids_by_library(path, self)
        super().__init__(tokenizer, **facts)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self._ids(text, add_special_tokens)

    def encode_whole(
        self, text: str, second: str | None = None, *, most_tokens: int | None = None
    ) -> tuple[list[int], int | None]:
        texts = [self._ids(each, False) for each in (text, second) if each is not None]
        around = self._ids("", True)
        if most_tokens is not None:
            lengths = [len(each) for each in texts]
            room = most_tokens - len(around) * len(texts)
            for each, kept in zip(texts, fit(lengths[0], sum(lengths[1:]), room), strict=False):
                del each[kept:]
        # Nothing but a beginning is put around texts by the vocabularies that come here.
        return [token for each in texts for token in (*around, *each)], None


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
        room = (library.llama_token * (len(raw) + 2))()
        count = library.llama_tokenize(
            vocabulary, raw, len(raw), room, len(room), add_special, True
        )
        assert count >= 0, "a token stands for a byte at the least"
        return list(room[:count])

    return ids
