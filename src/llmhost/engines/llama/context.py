"""One context of llama.cpp: its cells, its decoding and its logits. Used by one thread at a time.

What it means for requests is not known here.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np

from llmhost.core.errors import EngineFailed, OutOfMemory
from llmhost.engines.llama.batch import Batch
from llmhost.engines.llama.states import State, for_own_buffer, from_own_buffer, joined, read_state

MOST_SEQUENCES = 256
"""As many as llama.cpp can tell apart."""
UBATCH_TOKENS = 512
PAD_CELLS = 256

KvLayout = Literal["auto", "unified", "partitioned"]
Logits = np.ndarray[tuple[int, int], np.dtype[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextShape:
    """How contexts of one model are made."""

    batch_tokens: int
    """Most tokens in one call."""
    sequences: int
    """That hold something, whether they run or not, where all share one buffer."""
    rows: int
    """Most sequences in one step."""
    outputs: int
    """Most places in one call whose logits are wanted; at least `sequences`."""
    threads: int
    kv_type: int
    flash_attention: int
    offloads_kv: bool = True
    layout: KvLayout = "auto"
    """One buffer for all sequences, one for each, or as it suits what runs."""
    has_window: bool = False
    """Some layers look back no further than a window. Then all share one buffer."""
    pooling: str | None = None
    """Which tokens' vectors become a text's, for contexts that pool; None as the file says."""


def fitted(library: Any, model: Any, shape: ContextShape) -> ContextShape:
    """What contexts of this very model can be like."""
    if library.llama_model_n_swa(model) <= 0:
        return shape
    sequences = min(shape.sequences, MOST_SEQUENCES // 2)
    return replace(shape, has_window=True, layout="unified", sequences=sequences)


def padded(cells: int) -> int:
    """The least context with room for so many cells."""
    return -(-cells // PAD_CELLS) * PAD_CELLS


class NoRoom(EngineFailed):
    """llama.cpp found no free cells, and has done nothing."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a context has room for."""

    cells: int
    """Tokens; with `buffers` those of each."""
    buffers: int = 0
    """One for each sequence; 0 where all sequences share one, and the cells in it."""

    @property
    def tokens(self) -> int:
        return self.cells * max(self.buffers, 1)


@cache
def _logits_at(library: Any) -> Callable[[Any], int]:
    """The address of logits. It is asked for without giving up Python's lock, for which others might make us wait."""
    there = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    ask: Callable[[Any], int] = there(("llama_get_logits", library._lib))
    return ask


class Context:
    """Implements `Cells`, over one buffer that all sequences share or over one for each.

    llama.cpp gives away cells that are beyond a model's window when a single sequence holds them, though a text that
    goes on from an earlier place needs them. So for such a model each sequence has a twin that holds what it holds.
    """

    def __init__(self, library: Any, model: Any, shape: ContextShape, room: Room) -> None:
        """Raises OutOfMemory."""
        self._llama = library
        params = library.llama_context_default_params()
        params.n_ctx = padded(room.cells) * max(room.buffers, 1)
        params.n_batch = shape.batch_tokens
        params.n_ubatch = min(UBATCH_TOKENS, shape.batch_tokens)
        self.sequences = room.buffers or shape.sequences
        self._twin = shape.sequences if shape.has_window else 0
        assert not (room.buffers and self._twin), "what is saved of such a buffer can't be read"
        params.n_seq_max = self.sequences + self._twin
        params.n_outputs_max = max(shape.outputs, params.n_seq_max)
        params.n_threads = params.n_threads_batch = shape.threads
        params.type_k = params.type_v = shape.kv_type
        params.flash_attn_type = shape.flash_attention
        params.offload_kqv = shape.offloads_kv
        params.kv_unified = not room.buffers
        params.swa_full = True
        params.no_perf = True
        self._stop = ctypes.create_string_buffer(2)
        self._context = library.llama_init_from_model(model, params)
        if not self._context:
            raise OutOfMemory(f"llama.cpp could not make a context of {params.n_ctx} tokens.")
        self._memory = library.llama_get_memory(self._context)
        self._vocab_size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        self.room = Room(padded(room.cells), room.buffers)
        self.scratch = None if room.buffers else shape.sequences - 1
        self._known: dict[int, State] = {}
        """Sequences that were read and haven't changed since."""
        # llama.cpp takes no more at once than the context has room for, and ends the process over a larger batch.
        most = min(shape.batch_tokens, int(library.llama_n_batch(self._context)))
        self.batch = Batch(library, most, twin=self._twin)
        self._waits = shape.offloads_kv
        """For a GPU; without, a call of `llama_decode` is done when it returns."""
        self._adapter: Any | None = None
        self._logits_at = _logits_at(library)
        self._found: tuple[int, Logits] | None = None
        """Where logits were the last time. Mostly they are there again."""
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
        self._known.clear()
        code = self._llama.llama_decode(self._context, batch)
        if code == 1:
            raise NoRoom("llama.cpp found no free cells for a batch.")
        if code == 2:
            raise EngineFailed("The model is being unloaded; its step was cut short.")
        if code != 0:
            raise EngineFailed(f"llama.cpp could not compute a batch (code {code}).")

    def adapt(self, adapter: Any | None) -> None:
        """Run with an adapter, or without one, from the next call on."""
        if adapter is self._adapter:
            return
        adapters = () if adapter is None else (adapter,)
        handles = (self._llama.llama_adapter_lora_p_ctypes * len(adapters))(*adapters)
        scales = (ctypes.c_float * len(adapters))(*[1.0] * len(adapters))
        self._llama.llama_set_adapters_lora(self._context, handles, len(adapters), scales)
        self._adapter = adapter

    def logits(self, count: int) -> Logits:
        """Those of the last batch [count, vocabulary], in the order of its places. Valid until the next call."""
        if self._waits:
            self._llama.llama_synchronize(self._context)
        address = self._logits_at(self._context)
        if self._found is None or self._found[0] != address or len(self._found[1]) < count:
            # numpy's own way from a pointer to an array takes longer than to look for the largest number.
            buffer = (ctypes.c_float * (count * self._vocab_size)).from_address(address)
            lines = np.frombuffer(buffer, np.float32).reshape(count, self._vocab_size)
            self._found = address, lines
        return self._found[1][:count]

    def cut(self, sequence: int, start: int, end: int | None = None) -> None:
        self._known.pop(sequence, None)
        for one in self._with_twin(sequence):
            self._llama.llama_memory_seq_rm(self._memory, one, start, -1 if end is None else end)

    def share(self, source: int, target: int, start: int, end: int) -> None:
        assert self.scratch is not None, "llama.cpp ends the process over parts of other buffers"
        for one in self._with_twin(target):
            self._llama.llama_memory_seq_cp(self._memory, source, one, start, end)

    def _with_twin(self, sequence: int) -> tuple[int, ...]:
        return (sequence, sequence + self._twin) if self._twin else (sequence,)

    def read(self, sequence: int, start: int, end: int) -> bytes:
        if self.scratch is None:
            if sequence not in self._known:
                saved = from_own_buffer(self._save(sequence), sequence)
                self._known[sequence] = read_state(saved)
            return self._known[sequence].part(start, end).written()
        self.share(sequence, self.scratch, start, end)
        saved = self._save(self.scratch)
        self.cut(self.scratch, 0)
        return saved

    def _save(self, sequence: int) -> bytes:
        size = self._llama.llama_state_seq_get_size(self._context, sequence)
        room = (ctypes.c_uint8 * size)()
        written = self._llama.llama_state_seq_get_data(self._context, room, size, sequence)
        return bytes(memoryview(room)[:written])

    def copy(self, source: int, target: int) -> None:
        assert self.scratch is None, "in one buffer cells are shared"
        self._put(target, from_own_buffer(self._save(source), source))

    def restore(self, sequence: int, saved: Sequence[bytes]) -> None:
        whole = saved[0] if len(saved) == 1 else joined([*map(read_state, saved)]).written()
        self._put(sequence, whole)

    def _put(self, sequence: int, whole: bytes) -> None:
        self._known.pop(sequence, None)
        if buffers := self.room.buffers:
            whole = for_own_buffer(whole, sequence, buffers)
        room = (ctypes.c_uint8 * len(whole)).from_buffer_copy(whole)
        read = self._llama.llama_state_seq_set_data(self._context, room, len(whole), sequence)
        if read != len(whole):
            self.cut(sequence, 0)
            raise NoRoom("llama.cpp found no free cells for keys and values from host memory.")

    def close(self) -> None:
        if self._context:
            self._llama.llama_free(self._context)
        self._context = None
