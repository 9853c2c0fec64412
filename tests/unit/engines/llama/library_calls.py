"""llama.cpp asked directly: logits of a whole text, and ids of one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llmhost.engines.llama.library import llama


@contextmanager
def opened(path: Path, *, vocab_only: bool = False) -> Iterator[tuple[Any, Any]]:
    """The library and a loaded model."""
    library = llama()
    params = library.llama_model_default_params()
    params.vocab_only = vocab_only
    params.n_gpu_layers = 0
    model = library.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"llama.cpp does not load {path}"
    try:
        yield library, model
    finally:
        library.llama_model_free(model)


def logits_of(path: Path, tokens: Sequence[int]) -> np.ndarray:
    """A row for each position, in one call, with nothing rounded below float32: flash attention does that."""
    with opened(path) as (library, model):
        params = library.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max = 256
        params.n_threads = params.n_threads_batch = 2
        params.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.type_k = params.type_v = library.GGML_TYPE_F32
        context = library.llama_init_from_model(model, params)
        batch = library.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for place, token in enumerate(tokens):
                batch.token[place], batch.pos[place] = token, place
                batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
            assert library.llama_decode(context, batch) == 0
            size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
            raw = library.llama_get_logits(context)
            return np.ctypeslib.as_array(raw, (len(tokens), size)).copy()
        finally:
            library.llama_batch_free(batch)
            library.llama_free(context)


def ids_of(library: Any, model: Any, text: str, *, special: bool = True) -> list[int]:
    """What llama.cpp makes of a text; `special` is whether bos and eos are added."""
    vocabulary = library.llama_model_get_vocab(model)
    raw = text.encode()
    room = (library.llama_token * (len(raw) + 8))()
    count = library.llama_tokenize(vocabulary, raw, len(raw), room, len(room), special, True)
    assert count >= 0
    return list(room[:count])


def ends_of(library: Any, model: Any) -> set[int]:
    vocabulary = library.llama_model_get_vocab(model)
    count = library.llama_vocab_n_tokens(vocabulary)
    return {token for token in range(count) if library.llama_vocab_is_eog(vocabulary, token)}
