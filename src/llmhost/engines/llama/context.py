"""One context of llama.cpp: its cells, its decoding and its logits. Used by one thread at a time.

What it means for requests is not known here.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmhost.core.errors import EngineFailed, OutOfMemory
from llmhost.engines.llama.batch import Batch

MOST_SEQUENCES = 256
"""As many as llama.cpp can tell apart."""
UBATCH_TOKENS = 512
PAD_CELLS = 256

Logits = np.ndarray[tuple[int, int], np.dtype[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextShape:
    """How contexts of one model are made."""

    batch_tokens: int
    """Most tokens in one call."""
    sequences: int
    """That hold something, whether they run or not."""
    outputs: int
    """Most places in one call whose logits are wanted; at least `sequences`."""
    threads: int
    kv_type: int
    flash_attention: int
    offloads_kv: bool = True
    pooling: str | None = None
    """Which tokens' vectors become a text's, for contexts that pool; None as the file says."""


def padded(cells: int) -> int:
    """The least context with room for so many cells."""
    return -(-cells // PAD_CELLS) * PAD_CELLS


class NoRoom(EngineFailed):
    """llama.cpp found no free cells, and has done nothing."""


class Context:
    """Implements `Cells`, over a unified cache: all sequences share one buffer."""

    def __init__(self, library: Any, model: Any, shape: ContextShape, *, cells: int) -> None:
        """Raises OutOfMemory."""
        self._llama = library
        params = library.llama_context_default_params()
        params.n_ctx = padded(cells)
        params.n_batch = shape.batch_tokens
        params.n_ubatch = min(UBATCH_TOKENS, shape.batch_tokens)
        params.n_seq_max = shape.sequences
        params.n_outputs_max = shape.outputs
        params.n_threads = params.n_threads_batch = shape.threads
        params.type_k = params.type_v = shape.kv_type
        params.flash_attn_type = shape.flash_attention
        params.offload_kqv = shape.offloads_kv
        params.kv_unified = True
        params.swa_full = True
        params.no_perf = True
        self._stop = ctypes.create_string_buffer(2)
        self._context = library.llama_init_from_model(model, params)
        if not self._context:
            raise OutOfMemory(f"llama.cpp could not make a context of {params.n_ctx} tokens.")
        self._memory = library.llama_get_memory(self._context)
        self._vocab_size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        self.cells = int(params.n_ctx)
        # llama.cpp takes no more at once than the context has room for, and ends the process over a larger batch.
        most = min(shape.batch_tokens, int(library.llama_n_batch(self._context)))
        self.batch = Batch(library, most)
        self._watch_for_stop()

    def _watch_for_stop(self) -> None:
        """`interrupt` ends a call within one operation.

        llama.cpp asks before each of them. A Python function would have to take Python's lock a thousand times a
        step; C's `strlen` has the right shape, and is not 0 once a byte is written to the string that it is given.
        """
        strlen = ctypes.CDLL(None).strlen
        asked = ctypes.cast(strlen, self._llama.ggml_abort_callback)
        self._asked = (strlen, asked)
        address = ctypes.cast(self._stop, ctypes.c_void_p)
        self._llama.llama_set_abort_callback(self._context, asked, address)

    def interrupt(self) -> None:
        """Have the running call, and all that follow, end at once. From any thread."""
        self._stop[0] = b"\x01"

    def decode(self, batch: Any) -> None:
        """Compute a batch. Raises NoRoom, and EngineFailed, after which the cells of the batch are in doubt."""
        code = self._llama.llama_decode(self._context, batch)
        if code == 1:
            raise NoRoom("llama.cpp found no free cells for a batch.")
        if code == 2:
            raise EngineFailed("The model is being unloaded; its step was cut short.")
        if code != 0:
            raise EngineFailed(f"llama.cpp could not compute a batch (code {code}).")

    def logits(self, count: int) -> Logits:
        """Those of the last batch [count, vocabulary], in the order of its places. Valid until the next call."""
        pointer = self._llama.llama_get_logits(self._context)
        numbers = count * self._vocab_size
        # numpy's own way from a pointer to an array takes longer than to look for the largest number.
        buffer = (ctypes.c_float * numbers).from_address(ctypes.addressof(pointer.contents))
        found: Logits = np.frombuffer(buffer, np.float32).reshape(count, self._vocab_size)
        return found

    def cut(self, sequence: int, start: int, end: int | None = None) -> None:
        self._llama.llama_memory_seq_rm(self._memory, sequence, start, -1 if end is None else end)

    def share(self, source: int, target: int, start: int, end: int) -> None:
        self._llama.llama_memory_seq_cp(self._memory, source, target, start, end)

    def save(self, sequence: int) -> bytes:
        size = self._llama.llama_state_seq_get_size(self._context, sequence)
        room = (ctypes.c_uint8 * size)()
        written = self._llama.llama_state_seq_get_data(self._context, room, size, sequence)
        return bytes(memoryview(room)[:written])

    def restore(self, sequence: int, saved: bytes) -> None:
        room = (ctypes.c_uint8 * len(saved)).from_buffer_copy(saved)
        read = self._llama.llama_state_seq_set_data(self._context, room, len(saved), sequence)
        if read != len(saved):
            self.cut(sequence, 0)
            raise NoRoom("llama.cpp found no free cells for keys and values from host memory.")

    def close(self) -> None:
        if self._context:
            self._llama.llama_free(self._context)
        self._context = None
