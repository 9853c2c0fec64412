"""The LoRA adapters of one loaded GGUF model, as llama.cpp holds them.

One call of `llama_decode` runs with one adapter, or with none, so a step's rows are computed group by group. llama.cpp
plans its graphs anew whenever the adapter of a context changes, so a step begins with the one that the last one ended
with. Its list of a model's adapters is nobody's but the engine's thread's: files are read and written anew elsewhere.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from llmhost.core.errors import EngineFailed, ModelUnavailable
from llmhost.core.step import Row
from llmhost.engines.llama.adapter_files import Pair, adapter_bytes, read_pairs
from llmhost.engines.llama.header import Header, read_header


class Written:
    """An adapter as a file without a name, which is gone with this object."""

    def __init__(self, pairs: Sequence[Pair], architecture: str) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        _write(self.path, pairs, architecture)
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)

    @property
    def path(self) -> str:
        return f"/dev/fd/{self._file.fileno()}"

    def close(self) -> None:
        self._file.close()


class LlamaAdapters:
    """Implements AdapterHost. `size_bytes` and `read` may be called from any thread, the rest on the engine's."""

    def __init__(
        self, library: Any, model: Any, path: Path, stop_using: Callable[[], None]
    ) -> None:
        """`stop_using` has the model's context run without any adapter."""
        self._llama = library
        self._model = model
        self._path = path
        self._stop_using = stop_using
        self._loaded: dict[str, Any] = {}
        """What llama.cpp knows each by."""
        self._last: str | None = None

    def size_bytes(self, folder: Path) -> int:
        return adapter_bytes(folder)

    def read(self, folder: Path) -> Written:
        """The adapter in a folder or GGUF file. Raises ModelUnavailable when it is not for this model."""
        model = self._header()
        pairs = read_pairs(folder, model)
        try:
            return Written(pairs, str(model.metadata["general.architecture"]))
        except OSError as error:
            raise ModelUnavailable(
                f"There was no room for the adapter in {folder} while it was loaded: {error.strerror or error}."
                f" Free some space in {tempfile.gettempdir()}."
            ) from error

    def _header(self) -> Header:
        return read_header(self._path)

    def add(self, key: str, weights: Written) -> None:
        self.drop(key)
        try:
            found = self._llama.llama_adapter_lora_init(self._model, weights.path.encode())
        finally:
            weights.close()
        if not found:
            raise ModelUnavailable(f"llama.cpp can't run the adapter {key.partition('@')[0]!r}.")
        self._loaded[key] = found

    def drop(self, key: str) -> None:
        if (found := self._loaded.pop(key, None)) is not None:
            self._stop_using()
            self._last = None
            self._llama.llama_adapter_lora_free(found)

    def missing(self, rows: Sequence[Row]) -> dict[int, EngineFailed]:
        """Rows, by their place, whose adapter is not here."""
        return {
            at: EngineFailed(f"The adapter {row.adapter!r} is not loaded any more. Ask again.")
            for at, row in enumerate(rows)
            if row.adapter is not None and row.adapter not in self._loaded
        }

    def groups(self, rows: Sequence[Row]) -> list[tuple[Any, list[int]]]:
        """Each adapter's handle, None for the model alone, with the places of its rows."""
        if not self._loaded:
            return [(None, [])]
        places: dict[str | None, list[int]] = {}
        for at, row in enumerate(rows):
            places.setdefault(row.adapter, []).append(at)
        order = sorted(places, key=lambda key: key != self._last)
        self._last = order[-1]
        return [(None if key is None else self._loaded[key], places[key]) for key in order]

    def forget(self) -> None:
        """The model was freed, and its adapters with it."""
        self._loaded.clear()


def _write(path: str, pairs: Sequence[Pair], architecture: str) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    try:
        writer.add_string("general.type", "adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 0.0)  # the scale is in the matrices
        for pair in pairs:
            writer.add_tensor(f"{pair.tensor}.lora_a", pair.a)
            writer.add_tensor(f"{pair.tensor}.lora_b", pair.b)
        writer.write_header_to_file(Path(path))
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
