"""A file's first meeting with llama.cpp, in a process of its own: `python -m llmhost.engines.llama.trial`.

llama.cpp ends its process over numbers that contradict each other, wherever it comes upon them: when it reads them,
when it plans a step, or in the middle of one. So all of that is done here once, with little memory and one thread, and
what ends is this process alone. It is told what to try by standard input, and says on standard output what it found.
"""

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from llmhost.core.errors import LlmhostError
from llmhost.engines.llama.batch import Batch
from llmhost.engines.llama.context import PAD_CELLS, Context, ContextShape, Room, fitted
from llmhost.engines.llama.dry_load import step_bytes
from llmhost.engines.llama.library import llama
from llmhost.engines.llama.opening import open_model, refuse_unservable
from llmhost.engines.llama.pooling import open_pooling
from llmhost.engines.llama.settings import shape_of
from llmhost.engines.llama.trials import Asked, Found

TOKENS = 8
"""Of the prompt that is computed: enough for several to be computed together, few enough for one thread."""
TEXT = "Hello, w\u00f6rld! 12345\n\t\u4f60\u597d <s>"
PR_SET_PDEATHSIG = 1


def main() -> None:
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Asked)
    _keep_small(asked)
    try:
        _try(asked)
        found = Found()
    except LlmhostError as error:
        path = os.fsdecode(asked.path)
        named = error.message if path in error.message else f"{path} is not loaded: {error.message}"
        found = Found(named)
    sys.stdout.buffer.write(msgspec.json.encode(found))
    sys.stdout.buffer.flush()
    os._exit(0)  # nothing here is worth being taken down in order


def _keep_small(asked: Asked) -> None:
    """Be the first to go where memory runs out, and go with the parent."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != asked.parent:
        os._exit(1)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    most = allowed(asked.memory_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1])
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def allowed(wanted_bytes: int, hard_bytes: int) -> int:
    """No more than the node has been given, which only root may raise."""
    return wanted_bytes if hard_bytes == resource.RLIM_INFINITY else min(wanted_bytes, hard_bytes)


def _try(asked: Asked) -> None:
    """All that a server does with a model. Raises ModelUnavailable or OutOfMemory."""
    library, settings, path = llama(), asked.settings, Path(os.fsdecode(asked.path))
    _read_vocabulary(library, path)
    shape = shape_of(library, settings)
    for room in asked.rooms:
        step_bytes(path, shape, room, gpu_layers=0)
    if not asked.rooms:
        step_bytes(path, shape, Room(settings.batch_tokens), gpu_layers=0, pools=True)
    params = library.llama_model_default_params()
    params.use_extra_bufts = False  # what other kernels want of weights is a copy of them
    model = open_model(library, path, params, lambda line: None)
    refuse_unservable(library, model, path)
    few = replace(settings, batch_tokens=2 * TOKENS, rows=2, threads=1, gpu_layers=0)
    small = fitted(library, model, shape_of(library, few))
    words = _words(library, model)
    if not asked.rooms:
        _pool(library, model, small, words)
        return
    _generate(Context(library, model, small, Room(PAD_CELLS)), words)
    if any(room.buffers for room in asked.rooms) and not small.has_window:
        _generate(Context(library, model, small, Room(PAD_CELLS, 2)), words)


def _read_vocabulary(library: Any, path: Path) -> None:
    params = library.llama_model_default_params()
    params.vocab_only = True
    model = open_model(library, path, params, lambda line: None)
    vocabulary, text = library.llama_model_get_vocab(model), TEXT.encode()
    room = (library.llama_token * 256)()
    has_words = library.llama_vocab_type(vocabulary) != library.LLAMA_VOCAB_TYPE_NONE
    for adds_special in (False, True) if has_words else ():
        library.llama_tokenize(vocabulary, text, len(text), room, len(room), adds_special, True)
    library.llama_model_free(model)


def _words(library: Any, model: Any) -> list[int]:
    """Token ids from all over the vocabulary."""
    size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    return [at * (size - 1) // (TOKENS - 1) for at in range(TOKENS)]


def _generate(context: Context, words: list[int]) -> None:
    """A text, what is kept of it, and a step of it and another text. The context is left as it is."""
    count = len(words)
    every = [1] * count
    context.decode(context.batch.fill(words, [*range(count)], [0] * count, every))
    saved = context.read(0, 0, count)
    if context.scratch is None:
        context.copy(0, 1)
    else:
        context.share(0, 1, 0, count)
    context.decode(context.batch.fill(words[:2], [count, count], [0, 1], [1, 1]))
    context.logits(2)
    context.cut(1, 0)
    context.restore(1, [saved])


def _pool(library: Any, model: Any, shape: ContextShape, words: list[int]) -> None:
    """Two texts. What else may come of it, whoever pools them says."""
    context, batch = open_pooling(library, model, shape), Batch(library, shape.batch_tokens)
    places = [*range(len(words))] * 2
    whose = [at // len(words) for at in range(len(places))]
    library.llama_decode(context, batch.fill(words * 2, places, whose, [1] * len(places)))
    library.llama_get_embeddings_seq(context, 0)


if __name__ == "__main__":
    main()
